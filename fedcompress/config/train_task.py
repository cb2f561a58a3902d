"""The task of a round, which every site receives as canonical JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Protocol

from fedcompress.config.adapter_fields import check_adapter_config
from fedcompress.config.objective import Objective, objective_from, objective_json
from fedcompress.config.training_options import TrainingOptions, check_positive, pick_training_options
from fedcompress.errors import ConfigError, one_of
from fedcompress.types import NAME_PATTERN, Layout

ENDS = ("finished", "stopped")  # ways in which a run ends
PROTOCOL = 6  # version of the task's JSON; a site refuses tasks of any other version


# The largest value of each number of a task, and the largest count of each list: a site is asked for no more.
LARGEST = {
    "round": (1 << 32) - 1,
    "rounds": (1 << 32) - 1,
    "version": (1 << 32) - 1,
    "steps": 10_000_000,
    "batch_size": 1_000_000,
    "lr": 3.4e38,  # of float32: a rate that is too large ends in `nan-loss`, with its place
    "max_length": 1 << 22,
    "clip": 1e12,
    "feedback_warmup": (1 << 32) - 1,
    "feedback_reset": (1 << 32) - 1,
    "seed": (1 << 64) - 1,
    "deadline": 1e9,
    "life": 1 << 40,
}
MOST = {"freeze": 1000, "merged": 100_000, "refused": 1000}


# JSON types of the fields of a task, by annotation.
_JSON_TYPES: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "str": str,
    "tuple[str, ...]": list,
}


def _has_json_type(value: object, annotation: str) -> bool:
    """Return whether a parsed JSON value may stand for a field with this annotation."""
    if isinstance(value, bool) or not isinstance(value, _JSON_TYPES[annotation]):
        return False
    return not isinstance(value, list) or all(isinstance(item, str) for item in value)


class TemplateAdapter(Protocol):
    """Tells what a task has to know of the adapter in a template."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Return the content of ``adapter_config.json``."""

    @property
    def layout(self) -> Layout:
        """Return the layout of the trained tensors."""


class TaskTemplate(Protocol):
    """Tells what a task has to know of the template of a run; ``fedcompress.adapters.Template`` is one."""

    @property
    def adapter(self) -> TemplateAdapter:
        """Return config and layout of the adapter."""

    @property
    def objective(self) -> Objective:
        """Return what the model learns to do."""

    @property
    def freeze(self) -> tuple[str, ...]:
        """Return parts of the names of parameters that are not trained."""

    @property
    def base_fingerprint(self) -> str:
        """Return the SHA-256 of the base's weights, in hex; empty if it is not known."""

    @property
    def tokenizer(self) -> str:
        """Return the digest of the tokenizer, in hex; empty if it is not known."""

    @property
    def constants(self) -> str:
        """Return the digest of the adapter's constants, in hex; empty if it has none."""

    @property
    def quantization(self) -> str:
        """Return the quantization that sites must load the base with; empty if they may choose."""


@dataclass(frozen=True, kw_only=True)
class TrainTask(TrainingOptions):
    """A train task says what a site does in one round.

    It is equal for all sites except for ``merged``, ``site`` and ``refused``.
    """

    run: str
    round: int  # 1-based
    version: int  # of the published state to train from
    # A task must spell these options out: no site guesses them.
    steps: int = field()
    batch_size: int = field()
    lr: float = field()
    optimizer: str = field()
    codec: str = field()
    feedback: float = field()
    max_length: int = field()
    seed: int = field()
    rounds: int = 1  # of the whole run; a task that does not tell is of a run of one round
    deadline: float = 0.0  # seconds of training after which a site sends what it has; 0: none
    objective: str  # canonical JSON of the objective
    adapter_config: str  # canonical JSON of adapter_config.json
    layout: str  # canonical JSON of the layout
    freeze: tuple[str, ...] = ()  # parts of the names of parameters that are not trained
    base_fingerprint: str = ""  # hex; empty: not known
    tokenizer: str = ""  # hex digest; empty: not known
    constants: str = ""  # hex digest; empty: there are none
    quantization: str = ""  # quantization that the base must be loaded with; empty: any
    merged: tuple[str, ...] = ()  # hex digests of merged updates; this site's last one is among them if it has one
    ended: str = ""  # how the run has ended, one of ENDS, where nothing more is asked; empty: it goes on
    life: int = 0  # when the coordinator was last restored from a backup, seconds since 1970; 0: never
    site: str = ""  # site that the task is for; empty where the coordinator does not know who is behind a node
    refused: tuple[str, ...] = ()  # recent refusals of this site's updates, as "round: code: message"
    protocol: int = PROTOCOL

    CHECK_ORDER: ClassVar[tuple[str, ...]] = (
        "protocol",
        "run",
        "site",
        "batch_size",
        "lr",
        "max_length",
        "round",
        "rounds",
        "steps",
        "version",
        "clip",
        "deadline",
        "life",
        "ended",
        "optimizer",
        "objective",
        "adapter_config",
        "schedule",
        "correction",
        "codec",
        "feedback",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, largest in LARGEST.items():
            if getattr(self, name) > largest:
                raise ConfigError(f"task.{name}", getattr(self, name), f"must be at most {largest}")
        for name, most in MOST.items():
            if len(getattr(self, name)) > most:
                raise ConfigError(f"task.{name}", f"{len(getattr(self, name))} entries", f"must be at most {most}")

    @staticmethod
    def field_name(name: str) -> str:
        """Return the name of a field in error messages: ``task.name``."""
        return f"task.{name}"

    def check(self, name: str, field: str) -> None:
        """Perform one check: raise ``ConfigError`` unless a field has an allowed value."""
        match name:
            case "protocol":
                if self.protocol != PROTOCOL:
                    raise ConfigError(field, self.protocol, f"this version of fedcompress speaks {PROTOCOL}")
            case "run":
                if not NAME_PATTERN.fullmatch(self.run):
                    raise ConfigError(field, repr(self.run), f"must match {NAME_PATTERN.pattern}")
            case "site":
                if self.site and not NAME_PATTERN.fullmatch(self.site):
                    raise ConfigError(field, repr(self.site[:80]), f"must match {NAME_PATTERN.pattern}")
            case "round":
                check_positive(field, self.round)
            case "version" | "deadline" | "life":
                check_positive(field, getattr(self, name), zero=True)
            case "ended":
                if self.ended not in ("", *ENDS) or (self.ended and self.steps):
                    raise ConfigError(field, repr(self.ended[:80]), f"{one_of(ENDS)}, without steps, or empty")
            case "objective":
                objective_from(self.objective, field=field)
            case "adapter_config":
                check_adapter_config(self.adapter_config, field=field)
            case _:
                super().check(name, field)

    @property
    def learns(self) -> Objective:
        """Return the objective, parsed."""
        return objective_from(self.objective, field="task.objective")

    @classmethod
    def for_round(
        cls,
        options: TrainingOptions,
        template: TaskTemplate,
        *,
        run: str,
        round_: int,
        **specific: Any,
    ) -> TrainTask:
        """Build the task of a round from the training options of its run and from the template that it started from.

        Args:
            options: settings with the training options, such as a ``RunConfig``. All options are copied.
            template: objective, adapter, base, tokenizer, constants and quantization of the run.
            run: name of the run.
            round_: number of the round, from 1.
            specific: all other fields of the task by name, ``version`` among them, and options that this round has
                different from the run, such as ``steps=0`` for a round in which sites only evaluate.

        Returns:
            The task, with all its fields checked.

        Raises:
            ConfigError: an option is out of range.
        """
        from_template = {
            "objective": objective_json(template.objective),
            "adapter_config": json.dumps(dict(template.adapter.config), sort_keys=True, separators=(",", ":")),
            "layout": template.adapter.layout.to_json(),
            "freeze": template.freeze,
            "base_fingerprint": template.base_fingerprint,
            "tokenizer": template.tokenizer,
            "constants": template.constants,
            "quantization": template.quantization,
        }
        return cls(**{**pick_training_options(options), **from_template, "run": run, "round": round_, **specific})

    def to_json(self) -> str:
        """Return the task as canonical JSON: sorted keys, no spaces."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> TrainTask:
        """Parse what ``to_json`` returns.

        Raises:
            ConfigError: the text is not a task, or a field is out of range.
        """
        try:
            raw = json.loads(text)
            if not isinstance(raw, dict):
                raise TypeError(f"a {type(raw).__name__}")
            for known in fields(cls):
                if known.name in raw and not _has_json_type(raw[known.name], str(known.type)):
                    raise TypeError(f"{known.name}: must be of type {known.type}")
            kwargs: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in raw.items()}
            return cls(**kwargs)
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigError("task", text[:80], f"must be a task of protocol {PROTOCOL}: {error}") from error
