"""What a model learns to do: decided once for a run, equal at all sites, sent as JSON with every task."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from fedcompress.errors import ConfigError

HEADS = ("mean-pool-linear", "stock")


@dataclass(frozen=True, kw_only=True)
class Classification:
    """One class for each text.

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
            raise ConfigError("objective.head", self.head, f"must be one of {list(HEADS)}")


@dataclass(frozen=True, kw_only=True)
class CausalLM:
    """The next token of a completion; the loss leaves prompts out."""

    name: ClassVar[str] = "causal-lm"


@dataclass(frozen=True, kw_only=True)
class Seq2SeqLM:
    """The completion, by a decoder that attends to the encoded prompt."""

    name: ClassVar[str] = "seq2seq-lm"


Objective = Classification | CausalLM | Seq2SeqLM
OBJECTIVES: dict[str, type[Objective]] = {o.name: o for o in (Classification, CausalLM, Seq2SeqLM)}


def objective_json(objective: Objective) -> str:
    """Canonical JSON: the name, and the fields."""
    return json.dumps({"name": objective.name, **asdict(objective)}, sort_keys=True, separators=(",", ":"))


def objective_from(raw: object, field: str = "objective") -> Objective:
    """Inverse of ``objective_json``, from text or what it parses to.

    Raises:
        ConfigError: not an objective, or a field out of range.
    """
    try:
        found = json.loads(raw) if isinstance(raw, str) else raw
    except (ValueError, RecursionError) as error:
        raise ConfigError(field, str(raw)[:80], "must be the JSON of an objective") from error
    if not isinstance(found, dict) or found.get("name") not in OBJECTIVES:
        name = found.get("name") if isinstance(found, dict) else type(found).__name__
        raise ConfigError(field, repr(name), f"must be one of {list(OBJECTIVES)}")
    kwargs: dict[str, Any] = {k: v for k, v in found.items() if k != "name"}
    labels = kwargs.get("labels", [])
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ConfigError(f"{field}.labels", labels, "must be a list of names")
    if "labels" in kwargs:
        kwargs["labels"] = tuple(labels)
    try:
        return OBJECTIVES[found["name"]](**kwargs)
    except TypeError as error:
        raise ConfigError(field, found["name"], f"has other fields: {error}") from error
