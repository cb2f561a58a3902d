"""Training options are the settings that a run has and that the task of every round repeats.

``TrainingOptions`` is the one place where such an option is declared, given its default and checked. ``RunConfig`` and
``TrainTask`` inherit from it, and ``TrainTask.for_round`` copies every option of it, so a new option is written here
(and in ``pyproject.toml``, because Flower can override only keys that are listed there). An option that model, rows or
engine are built from also goes into ``_model_key`` of ``clients/training/trainer.py``. Sites of an older version refuse
tasks with an option that they do not know, so that ``PROTOCOL`` is raised with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from fedcompress.codecs import CodecSpec, ErrorFeedback
from fedcompress.config.drift import parse_drift_correction
from fedcompress.config.schedules import parse_schedule
from fedcompress.errors import ConfigError, one_of
from fedcompress.optim import parse_optimizer
from fedcompress.optim.base import survives_rounds

OPTIMIZER_STATES = ("reset", "keep")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Says how sites train: equal for all sites, and the same from the first round of a run to the last.

    A subclass may add settings of its own. It lists their checks in ``CHECK_ORDER`` and performs them in ``check``.
    """

    rounds: int = 5  # of the whole run; the schedule spans all of them
    steps: int = 20  # optimizer steps of a site in a round; 0: a site only evaluates
    batch_size: int = 16  # examples in a step, over all ranks of a site
    lr: float = 2e-3  # learning rate before the schedule
    optimizer: str = "adamw8bit"  # a row of OPTIMIZERS with its parameters
    optimizer_state: str = "reset"  # what a site does with the optimizer's state when a round begins: reset or keep
    codec: str = "lora-transform"  # codec of the updates that sites send
    feedback: float = 1.0  # decay of the error-feedback residual; 1 keeps all of it, 0 drops it
    feedback_warmup: int = 0  # rounds over which ``feedback`` grows to its value
    feedback_reset: int = 0  # residuals are dropped every so many rounds; 0: never
    residual_store: str = "none"  # how sites store residuals: none (float32), bf16, int8
    schedule: str = "constant"  # schedule of the learning rate over all rounds
    clip: float = 1.0  # bound on the global norm of a site's gradient; 0: gradients are not clipped
    correction: str = "none"  # correction of client drift, a row of DRIFT_CORRECTIONS
    max_length: int = 64  # tokens of an example; longer ones are cut
    seed: int = 0  # seed of everything that is drawn at random

    # Checks in the order in which they are performed. Most have the name of the setting that they are about. Options
    # that are not listed are checked last, so a new option is checked wherever it is inherited.
    CHECK_ORDER: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name in dict.fromkeys((*self.CHECK_ORDER, *training_option_names())):
            self.check(name, self.field_name(name))

    @staticmethod
    def field_name(name: str) -> str:
        """Return the name under which users know a setting; error messages begin with it."""
        return name

    def check(self, name: str, field: str) -> None:
        """Perform one check: raise ``ConfigError`` if the value of a setting is out of range or does not parse.

        Args:
            name: of the check; here the attribute that holds the value.
            field: name of the setting in error messages.
        """
        value = getattr(self, name)
        match name:
            case "rounds" | "batch_size" | "lr" | "max_length":
                check_positive(field, value)
            case "steps" | "clip":
                check_positive(field, value, zero=True)
            case "optimizer":
                check_optimizer(field, value, self.optimizer_state)
            case "schedule":
                parse_schedule(value, field=field)
            case "correction":
                parse_drift_correction(value, field=field)
            case "codec":
                CodecSpec.parse(value, field=field)
            case "feedback":
                _ = self.error_feedback  # its constructor checks the four settings of the residual

    @property
    def error_feedback(self) -> ErrorFeedback:
        """Return how a sender keeps and returns what its codec leaves out."""
        return ErrorFeedback(
            decay=self.feedback,
            warmup=self.feedback_warmup,
            reset=self.feedback_reset,
            store=self.residual_store,
        )


def training_option_names() -> tuple[str, ...]:
    """Return the names of all training options, in the order in which they are declared."""
    return tuple(field.name for field in fields(TrainingOptions))


def pick_training_options(settings: TrainingOptions) -> dict[str, Any]:
    """Return the training options among some settings, by name, without what a subclass has added."""
    return {name: getattr(settings, name) for name in training_option_names()}


def check_optimizer(field: str, text: str, state: str) -> None:
    """Raise ``ConfigError`` unless an optimizer can train in rounds.

    Args:
        field: name of the setting in error messages.
        text: the optimizer as the user wrote it, ``name`` or ``name(key=value,...)``.
        state: what a site does with the optimizer's state when a round begins; one of ``OPTIMIZER_STATES``.

    Raises:
        ConfigError: there is no such optimizer, it is for training in one place only, or ``state`` is another word.
    """
    if not survives_rounds(parse_optimizer(text, field=field)):
        raise ConfigError(field, text, "is for training in one place: its average does not outlive a round")
    if state not in OPTIMIZER_STATES:
        raise ConfigError(f"{field}-state", state, one_of(OPTIMIZER_STATES, state))


def check_positive(field: str, value: float, *, zero: bool = False) -> None:
    """Raise ``ConfigError`` unless a number is finite and positive.

    Args:
        field: name of the setting in error messages.
        value: the number; NaN is refused.
        zero: whether 0 is allowed, too.

    Raises:
        ConfigError: the number is infinite, NaN, negative, or 0 where that is not allowed.
    """
    if value == math.inf:
        raise ConfigError(field, value, "must be finite")
    if not (value >= 0 if zero else value > 0):
        raise ConfigError(field, value, "must be >= 0" if zero else "must be above 0")
