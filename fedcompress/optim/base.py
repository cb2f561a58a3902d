"""What an optimizer rule is: state in, state out.

A rule knows one parameter at a time. ``update(grad, state, step, part, weight)`` gives the
direction to go against and the new state; learning rate and decoupled weight decay are applied
by the caller, as ``weight -= lr * (delta + weight_decay * weight)``, but for rules that are
``Decaying`` without the second term. What a rule draws, it
draws from the parameter's name and the number of the refresh, so that every rank, every
placement and every site of a round draws the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from fedcompress.errors import ConfigError

State = dict[str, Any]  # tensors and ints
ELEMENTWISE, MATRIX = "elementwise", "matrix"
STORES: tuple[str, ...] = ("fp32", "bf16", "8bit", "4bit")
EPOCH = 1 << 40


def derive_seed(*items: object) -> int:
    """63 bits that depend on all items."""
    text = "/".join(map(str, items)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """A run of entries of one parameter, in row-major order.

    Args:
        name: of the parameter.
        shape: of the whole parameter.
        start: first entry.
        numel: entries; matrix rules always see all.
        seed: of the run.
        epoch: grows when a new global state arrives; bases are drawn anew.
        before: steps that were made before the epoch, and are counted on.
        index: of the parameter among those of its rule.
        count: how many parameters the rule has.
        layer: of the model that it belongs to; -1 if none.
        layers: how many there are.
        lr: of this step.
        weight_decay: of this step; for rules that are ``Decaying``.
    """

    name: str
    shape: tuple[int, ...]
    start: int = 0
    numel: int = -1
    seed: int = 0
    epoch: int = 0
    before: int = 0
    index: int = 0
    count: int = 1
    layer: int = -1
    layers: int = 0
    lr: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.numel < 0:
            object.__setattr__(self, "numel", math.prod(self.shape) - self.start)

    @property
    def total(self) -> int:
        """Entries of the whole parameter."""
        return math.prod(self.shape)

    @property
    def whole(self) -> bool:
        """All entries are here."""
        return self.start == 0 and self.numel == self.total

    def refresh(self, step: int, gap: int, *, staggered: bool = True) -> int:
        """Number of the interval that a step is in; bases and masks are drawn when it changes.

        Staggered, parameters change at different steps, by a hash of their names, so that no step pays for all.
        """
        phase = derive_seed(self.name) % gap if staggered else 0
        return self.epoch * EPOCH + (step - 1 + phase) // gap

    def generator(self, refresh: int) -> Any:
        """A ``torch.Generator`` on the CPU for one refresh."""
        import torch

        return torch.Generator().manual_seed(derive_seed(self.seed, self.name, refresh))


@runtime_checkable
class Rule(Protocol):
    """One optimizer, as a frozen dataclass of its parameters.

    ``placement`` says what ``update`` may be given: any part of a parameter, or a whole matrix.
    ``moments`` are the state tensors that may be kept in fewer bits, and whether they are signed.
    With ``needs_weight``, matrix rules are given the whole weight too, which costs a gather;
    elementwise rules always are given theirs.
    """

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    moments: ClassVar[Mapping[str, bool]]
    needs_weight: ClassVar[bool]

    @property
    def placement(self) -> str:
        """``elementwise`` or ``matrix``."""
        ...

    @property
    def state(self) -> str:
        """How moments are kept, one of ``STORES``."""
        ...

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise ``ConfigError`` unless the rule can run on a parameter."""
        ...

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Entries of each moment of a whole parameter."""
        ...

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of state that is kept as it is: bases, indices, masks."""
        ...

    def update(self, grad: Any, state: State, step: int, part: ShardInfo, weight: Any) -> tuple[Any, State]:
        """Direction and new state.

        Args:
            grad: float32; flat for elementwise rules, 2-D for matrix rules. Not changed.
            state: of the last step; empty at first. It is given away: its tensors may be written to.
            step: 1 for the first.
            part: which entries these are.
            weight: like ``grad``, or None.
        """
        ...


@runtime_checkable
class Reshardable(Protocol):
    """A rule whose state is not one number for each entry, and knows how to cut it."""

    def slice_state(self, state: State, whole: ShardInfo, part: ShardInfo) -> State:
        """The state of a part, of that of the whole."""
        ...


@runtime_checkable
class Decaying(Protocol):
    """A rule that adds ``part.weight_decay * weight`` to its direction where it is due; the caller adds none."""

    decays: ClassVar[bool]


def survives_rounds(rule: Rule) -> bool:
    """Return whether what a rule keeps means anything once the weights are replaced by a new published state.

    It does, unless the rule's class says ``survives_rounds = False``.
    """
    return bool(getattr(rule, "survives_rounds", True))


def check_positive(field: str, value: float) -> None:
    """Raise ``ConfigError`` unless above 0."""
    if not value > 0:
        raise ConfigError(field, value, "must be above 0")


def check_rate(field: str, value: float) -> None:
    """Raise ``ConfigError`` unless finite and at least 0."""
    if not 0 <= value < math.inf:
        raise ConfigError(field, value, "must be finite and at least 0")


def check_share(field: str, value: float) -> None:
    """Raise ``ConfigError`` unless in (0, 1]."""
    if not 0 < value <= 1:
        raise ConfigError(field, value, "must be above 0 and at most 1")


def check_beta(field: str, value: float) -> None:
    """Raise ``ConfigError`` unless in [0, 1)."""
    if not 0 <= value < 1:
        raise ConfigError(field, value, "must be at least 0 and below 1")


def check_moments(rule: Any) -> None:
    """Raise ``ConfigError`` unless a rule's betas are in [0, 1) and its kind of states is known."""
    for key in ("beta1", "beta2"):
        check_beta(f"optimizer.{rule.name}.{key}", getattr(rule, key))
    check_choice(f"optimizer.{rule.name}.state", rule.state, STORES)


def check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ConfigError`` unless one of the choices."""
    if value not in choices:
        raise ConfigError(field, value, f"must be one of {list(choices)}")


def check_matrix(rule: str, name: str, shape: tuple[int, ...]) -> None:
    """Raise ``ConfigError`` unless a parameter is a matrix."""
    if len(shape) != 2 or 0 in shape:
        raise ConfigError(f"optimizer.{rule}", f"{name} of shape {list(shape)}", "must be a matrix; give it to adamw")
