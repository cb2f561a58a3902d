"""An objective says what a model learns to do.

It is decided once for a run, is equal at all sites, and is sent as JSON with every task.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from fedcompress.errors import ConfigError, one_of

HEADS = ("mean-pool-linear", "stock")  # heads of a classifier


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Classification assigns one class to each text.

    Args:
        labels: class names, in the order of the head's rows; agreed by all sites, never guessed from data.
        head: ``mean-pool-linear``, a linear layer on the mean of token vectors, or ``stock``, the head of
            ``AutoModelForSequenceClassification``.
    """

    name: ClassVar[str] = "classification"
    labels: tuple[str, ...]
    head: str = HEADS[0]

    def __post_init__(self) -> None:
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise ConfigError("objective.labels", list(self.labels), "must be at least 2 distinct names")
        if self.head not in HEADS:
            raise ConfigError("objective.head", self.head, one_of(HEADS, self.head))


@dataclass(frozen=True, kw_only=True)
class CausalLM:
    """A causal language model predicts the next token of a completion; the loss leaves prompts out."""

    name: ClassVar[str] = "causal-lm"


@dataclass(frozen=True, kw_only=True)
class Seq2SeqLM:
    """A sequence-to-sequence model predicts a completion by a decoder that attends to the encoded prompt."""

    name: ClassVar[str] = "seq2seq-lm"


Objective = Classification | CausalLM | Seq2SeqLM
OBJECTIVES: dict[str, type[Objective]] = {o.name: o for o in (Classification, CausalLM, Seq2SeqLM)}


def objective_json(objective: Objective) -> str:
    """Return the canonical JSON of an objective: its name and its fields, with sorted keys and without spaces."""
    return json.dumps({"name": objective.name, **asdict(objective)}, sort_keys=True, separators=(",", ":"))


def objective_from(raw: object, field: str = "objective") -> Objective:
    """Build an objective from its JSON, the inverse of ``objective_json``.

    Args:
        raw: JSON text, or what it parses to.
        field: name of the setting in error messages.

    Raises:
        ConfigError: it is not an objective, or a field is out of range.
    """
    try:
        parsed = json.loads(raw) if isinstance(raw, str) else raw
    except (ValueError, RecursionError) as error:
        raise ConfigError(field, str(raw)[:80], "must be the JSON of an objective") from error
    if not isinstance(parsed, dict) or parsed.get("name") not in OBJECTIVES:
        name = parsed.get("name") if isinstance(parsed, dict) else type(parsed).__name__
        raise ConfigError(field, repr(name), one_of(OBJECTIVES, name))
    kwargs: dict[str, Any] = {k: v for k, v in parsed.items() if k != "name"}
    labels = kwargs.get("labels", [])
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ConfigError(f"{field}.labels", labels, "must be a list of names")
    if "labels" in kwargs:
        kwargs["labels"] = tuple(labels)
    try:
        return OBJECTIVES[parsed["name"]](**kwargs)
    except TypeError as error:
        raise ConfigError(field, parsed["name"], f"has other fields: {error}") from error
