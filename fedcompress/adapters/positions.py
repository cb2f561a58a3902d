"""Finds how many tokens a model has learnt positions for: a longer text ends in the error of a tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    "data2vec-text": ("max_position_embeddings", 2),
    "ernie": ("max_position_embeddings", 0),
    "gpt2": ("n_positions", 0),
    "gpt_bigcode": ("n_positions", 0),
    "gpt_neo": ("max_position_embeddings", 0),
    "mbart": ("max_position_embeddings", 0),
    "megatron-bert": ("max_position_embeddings", 0),
    "mobilebert": ("max_position_embeddings", 0),
    "mpnet": ("max_position_embeddings", 2),
    "openai-gpt": ("n_positions", 0),
    "opt": ("max_position_embeddings", 0),
    "roberta": ("max_position_embeddings", 2),
    "roberta-prelayernorm": ("max_position_embeddings", 2),
    "splinter": ("max_position_embeddings", 0),
    "squeezebert": ("max_position_embeddings", 0),
    "xlm-roberta": ("max_position_embeddings", 2),
}


def count_positions(folder: Path, config: Mapping[str, Any]) -> int:
    """Count the tokens of a text that a model has positions for; 0 if there is no such limit, or it is not known.

    Rotary and relative positions have none: a model may be worse beyond what it was trained on, but it computes.

    Args:
        folder: of the base model.
        config: the JSON of the adapter's config, whose virtual tokens take positions, too; it may be empty.
    """
    try:
        model = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        key, unused = LEARNT.get(model.get("model_type"), ("", 0))
        rows = model.get(key, 0)
    except (OSError, ValueError, AttributeError, RecursionError):
        return 0
    virtual = config.get("num_virtual_tokens") or 0
    return max(1, rows - unused - virtual) if isinstance(rows, int) and rows else 0


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
