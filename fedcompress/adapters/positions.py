"""Finds how many tokens a model has learnt positions for: a longer text ends in the error of a tensor."""

from __future__ import annotations

import json
from pathlib import Path

from fedcompress.errors import ConfigError

# Models with a matrix of learnt positions: the key of config.json that has its rows, and rows that are no positions.
LEARNT = {
    "albert": ("max_position_embeddings", 0),
    "bart": ("max_position_embeddings", 0),
    "bert": ("max_position_embeddings", 0),
    "biogpt": ("max_position_embeddings", 0),
    "camembert": ("max_position_embeddings", 2),
    "convbert": ("max_position_embeddings", 0),
    "distilbert": ("max_position_embeddings", 0),
    "electra": ("max_position_embeddings", 0),
    "ernie": ("max_position_embeddings", 0),
    "gpt2": ("n_positions", 0),
    "gpt_bigcode": ("n_positions", 0),
    "gpt_neo": ("max_position_embeddings", 0),
    "mbart": ("max_position_embeddings", 0),
    "mpnet": ("max_position_embeddings", 2),
    "opt": ("max_position_embeddings", 0),
    "roberta": ("max_position_embeddings", 2),
    "xlm-roberta": ("max_position_embeddings", 2),
}


def count_positions(folder: Path) -> int:
    """Count the tokens that a model has positions for; 0 if there is no such limit, or it is not known.

    Rotary and relative positions have none: a model may be worse beyond what it was trained on, but it computes.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        key, unused = LEARNT.get(config.get("model_type"), ("", 0))
        rows = config.get(key, 0)
    except (OSError, ValueError, AttributeError, RecursionError):
        return 0
    return max(0, rows - unused) if isinstance(rows, int) else 0


def check_length(max_length: int, positions: int, field: str) -> None:
    """Raise ``ConfigError`` if texts may be longer than a model has positions for.

    Args:
        max_length: tokens of an example.
        positions: of the model; 0: no limit.
        field: what the error calls ``max_length``.

    Raises:
        ConfigError: it is larger.
    """
    if 0 < positions < max_length:
        raise ConfigError(field, max_length, f"must be at most {positions}, the positions that the base model has")
