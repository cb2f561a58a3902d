"""The task of a round, which every site receives as canonical JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from fedcompress.codecs import CodecSpec, Feedback
from fedcompress.config.drift import parse_drift_correction
from fedcompress.config.objective import Objective, objective_from
from fedcompress.config.schedules import parse_schedule
from fedcompress.config.training_options import check_optimizer, check_positive
from fedcompress.errors import ConfigError
from fedcompress.types import NAME

PROTOCOL = 5


# How the fields of a task are written in JSON.
_JSON_TYPES: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "str": str,
    "tuple[str, ...]": list,
}


def _is_written_as(value: object, kind: str) -> bool:
    items = value if isinstance(value, list) else []
    fits = isinstance(value, _JSON_TYPES[kind]) and not isinstance(value, bool)
    return fits and all(isinstance(item, str) for item in items)


@dataclass(frozen=True, kw_only=True)
class TrainTask:
    """What a site does in a round. Equal for all sites but for ``merged``, ``site`` and ``refused``."""

    run: str
    round: int  # 1-based
    version: int  # of the published state to train from
    steps: int  # optimizer steps; 0: evaluate only
    batch_size: int  # examples a step over all ranks
    lr: float
    optimizer: str
    codec: str
    feedback: float  # decay of the residual
    feedback_warmup: int = 0  # rounds
    feedback_reset: int = 0  # rounds
    residual_store: str = "none"
    optimizer_state: str = "reset"
    schedule: str = "constant"  # of the learning rate, over all rounds
    rounds: int = 1  # of the whole run, which the schedule spans
    clip: float = 1.0  # global norm of the gradient; 0: not clipped
    correction: str = "none"  # of drift
    deadline: float = 0.0  # seconds of training, after which a site sends what it has; 0: none
    max_length: int  # tokens
    objective: str  # canonical JSON
    seed: int
    adapter_config: str  # canonical JSON of adapter_config.json
    layout: str  # canonical JSON of the layout
    freeze: tuple[str, ...] = ()  # parts of names that are not trained
    base_fingerprint: str = ""  # hex; empty: not known
    tokenizer: str = ""  # hex; empty: not known
    constants: str = ""  # hex; empty: there are none
    quantization: str = ""  # that the base must be loaded with; empty: any
    merged: tuple[str, ...] = ()  # hex digests, this site's last merged update is among them if there is one
    life: int = 0  # of the run: seconds since 1970 when its coordinator was last restored from a backup; 0: never
    site: str = ""  # that it is for; empty where the coordinator does not know who is behind a node
    refused: tuple[str, ...] = ()  # what was refused of this site of late, as "round: code: message"
    protocol: int = PROTOCOL

    def __post_init__(self) -> None:
        if self.protocol != PROTOCOL:
            raise ConfigError("task.protocol", self.protocol, f"this version of fedcompress speaks {PROTOCOL}")
        if not NAME.fullmatch(self.run):
            raise ConfigError("task.run", repr(self.run), f"must match {NAME.pattern}")
        if self.site and not NAME.fullmatch(self.site):
            raise ConfigError("task.site", repr(self.site[:80]), f"must match {NAME.pattern}")
        for name in ("batch_size", "lr", "max_length", "round", "rounds"):
            check_positive(f"task.{name}", getattr(self, name))
        for name in ("steps", "version", "clip", "deadline", "life"):
            check_positive(f"task.{name}", getattr(self, name), zero=True)
        check_optimizer("task.optimizer", self.optimizer, self.optimizer_state)
        objective_from(self.objective, field="task.objective")
        parse_schedule(self.schedule, field="task.schedule")
        parse_drift_correction(self.correction, field="task.correction")
        CodecSpec.parse(self.codec, field="task.codec")
        _ = self.error_feedback  # checks its ranges

    @property
    def error_feedback(self) -> Feedback:
        """How the site keeps what its codec leaves out."""
        warmup, reset = self.feedback_warmup, self.feedback_reset
        return Feedback(decay=self.feedback, warmup=warmup, reset=reset, store=self.residual_store)

    @property
    def learns(self) -> Objective:
        """The objective."""
        return objective_from(self.objective, field="task.objective")

    def to_json(self) -> str:
        """Canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> TrainTask:
        """Inverse of ``to_json``.

        Raises:
            ConfigError: not a task, or a field is out of range.
        """
        try:
            raw = json.loads(text)
            if not isinstance(raw, dict):
                raise TypeError(f"a {type(raw).__name__}")
            for field in fields(cls):
                if field.name in raw and not _is_written_as(raw[field.name], str(field.type)):
                    raise TypeError(f"{field.name}: must be of type {field.type}")
            kwargs: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in raw.items()}
            return cls(**kwargs)
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigError("task", text[:80], f"must be a task of protocol {PROTOCOL}: {error}") from error
