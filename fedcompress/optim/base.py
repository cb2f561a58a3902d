"""The contract of optimizer rules: a rule is a pure function from gradient and state to a direction and a new state.

A rule sees one parameter at a time, and it never touches the weight. ``update`` returns the direction ``delta`` to
go against; the caller applies the learning rate and the decoupled weight decay as
``weight -= lr * (delta + weight_decay * weight)``. Rules that are ``Decaying`` add the second term to their
direction themselves, and the caller leaves it out.

What a rule draws at random, it draws from the run's seed, the parameter's name and the number of the refresh. So
every rank, every placement of the parameter and every site of a round draws the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from fedcompress.errors import ConfigError, one_of
from fedcompress.numerics.philox import hash_seed

if TYPE_CHECKING:
    from torch import Generator, Tensor

# The state of any rule, as the engine handles it: tensors, packed moments and ints by key. Beside each rule, a
# ``TypedDict`` says which keys it has.
State = dict[str, Any]

# The two placements: what piece of a parameter a rule must be given.
ELEMENTWISE = "elementwise"
MATRIX = "matrix"

STORES: tuple[str, ...] = ("fp32", "bf16", "8bit", "4bit")  # how moments may be stored between steps
EPOCH_STRIDE = 1 << 40  # refresh number = epoch * EPOCH_STRIDE + interval within the epoch


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """A shard is a run of entries of one parameter, in row-major order; this describes it and stays over all steps.

    Args:
        name: name of the parameter in the model.
        shape: shape of the whole parameter, whatever shards it.
        start: index of the first entry of the run in the flattened parameter.
        numel: number of entries in the run; -1 means up to the end. Matrix rules always get whole parameters.
        seed: seed of the run, from which the rule's draws are derived; equal on all ranks.
        index: position of the parameter among those of its parameter group.
        count: number of parameters in that group.
        layer: number of the model's layer that the parameter belongs to; -1 if it is in none.
        layers: number of layers in the model.
    """

    name: str
    shape: tuple[int, ...]
    start: int = 0
    numel: int = -1
    seed: int = 0
    index: int = 0
    count: int = 1
    layer: int = -1
    layers: int = 0

    def __post_init__(self) -> None:
        if self.numel < 0:
            object.__setattr__(self, "numel", math.prod(self.shape) - self.start)

    @property
    def total(self) -> int:
        """Return the number of entries of the whole parameter."""
        return math.prod(self.shape)

    @property
    def whole(self) -> bool:
        """Return whether the run has all entries of the parameter."""
        return self.start == 0 and self.numel == self.total

    def generator(self, refresh: int) -> Generator:
        """Return a generator on the CPU whose draws depend on the seed, the parameter and the refresh number."""
        import torch

        return torch.Generator().manual_seed(hash_seed(self.seed, self.name, refresh))


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """A step context says which step a rule makes, in which round, and at which rates.

    Args:
        step: number of the parameter's step, 1 for the first. It goes on over rounds that keep the state.
        lr: learning rate that the caller will apply to this step.
        weight_decay: decoupled weight decay of this step; only rules that are ``Decaying`` use it.
        epoch: number of the round; it changes when a new global state arrives, and bases are then drawn anew.
        steps_before: how many of the parameter's steps were made before the epoch began.
    """

    step: int = 1
    lr: float = 0.0
    weight_decay: float = 0.0
    epoch: int = 0
    steps_before: int = 0

    def refresh_number(self, shard: ShardInfo, gap: int) -> int:
        """Return the number of the refresh interval that the step is in; bases and masks are drawn when it changes.

        Intervals are ``gap`` steps long and begin at different steps for different parameters, by a hash of their
        names, so that no single step pays for the refresh of all parameters.
        """
        phase = hash_seed(shard.name) % gap
        return self.epoch * EPOCH_STRIDE + (self.step - 1 + phase) // gap

    def common_refresh_number(self, gap: int) -> int:
        """Return the number of the refresh interval of ``gap`` steps, which all parameters of a model share.

        The intervals are counted from the beginning of the epoch.
        """
        return self.epoch * EPOCH_STRIDE + (self.step - self.steps_before - 1) // gap


@runtime_checkable
class OptimizerRule(Protocol):
    """A rule is one optimizer: a frozen dataclass of its parameters, with functions that keep nothing between calls.

    Attributes:
        name: name of the rule in ``OPTIMIZERS``.
        moments: state keys of float32 tensors that may be stored in fewer bits between steps, and whether each
            has signed values. The caller packs them after ``update`` and unpacks them before the next one; all
            other keys are handed back as they were returned.
        needs_weight: whether a matrix rule is given the whole weight as well, which costs a gather under ZeRO.
            Elementwise rules are always given theirs.
    """

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    moments: ClassVar[Mapping[str, bool]]
    needs_weight: ClassVar[bool]

    @property
    def placement(self) -> str:
        """Return ``elementwise`` if ``update`` takes any run of entries, ``matrix`` if it needs the whole parameter."""
        ...

    @property
    def state(self) -> str:
        """Return how the moments are stored between steps, one of ``STORES``."""
        ...

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise ``ConfigError`` unless the rule can run on a parameter of this shape."""
        ...

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the number of entries of each moment, for a whole parameter."""
        ...

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of all state that is no moment, as bases, indices and masks, for a whole parameter."""
        ...

    def update(
        self, grad: Tensor, state: Any, shard: ShardInfo, context: StepContext, weight: Tensor | None
    ) -> tuple[Tensor, Any]:
        """Compute the direction of one step and the state after it.

        Args:
            grad: gradient in float32: shape (shard.numel,) for elementwise rules, the parameter's own shape for
                matrix rules. The rule must not write to it.
            state: what the last call returned, a dict of the rule's own ``TypedDict``; empty at the first step.
                Its moments are float32. The caller has given it away: the rule may write to its tensors in place.
            shard: which entries of which parameter these are.
            context: number of the step, round, and rates.
            weight: the weight before the step, shaped like ``grad``; None for matrix rules without
                ``needs_weight``. The rule must not write to it.

        Returns:
            The direction to go against, shaped like ``grad``, which the caller may write to; and the new state.
        """
        ...


@runtime_checkable
class Reshardable(Protocol):
    """A reshardable rule has state that is not one number for each entry, and knows how to cut it to a shard."""

    def slice_state(self, state: Any, whole: ShardInfo, shard: ShardInfo) -> Any:
        """Return the state of a shard, cut from that of the whole parameter.

        Args:
            state: state of the whole parameter, with moments in float32.
            whole: describes the whole parameter.
            shard: describes the shard.

        Returns:
            A state as ``update`` takes it for the shard.
        """
        ...


@runtime_checkable
class Decaying(Protocol):
    """A decaying rule adds ``context.weight_decay * weight`` to its direction where it is due; the caller adds none."""

    decays: ClassVar[bool]


def survives_rounds(rule: OptimizerRule) -> bool:
    """Return whether a rule's state still has a meaning once a new global state has replaced the weights.

    It has, unless the rule's class says ``survives_rounds = False``.
    """
    return bool(getattr(rule, "survives_rounds", True))


def check_positive(field: str, value: float) -> None:
    """Raise ``ConfigError`` unless a value is above 0."""
    if not value > 0:
        raise ConfigError(field, value, "must be above 0")


def check_rate(field: str, value: float) -> None:
    """Raise ``ConfigError`` unless a value is finite and at least 0."""
    if not 0 <= value < math.inf:
        raise ConfigError(field, value, "must be finite and at least 0")


def check_share(field: str, value: float) -> None:
    """Raise ``ConfigError`` unless a value is in (0, 1]."""
    if not 0 < value <= 1:
        raise ConfigError(field, value, "must be above 0 and at most 1")


def check_beta(field: str, value: float) -> None:
    """Raise ``ConfigError`` unless a value is in [0, 1)."""
    if not 0 <= value < 1:
        raise ConfigError(field, value, "must be at least 0 and below 1")


def check_moments(rule: Any) -> None:
    """Raise ``ConfigError`` unless a rule's two betas are in [0, 1) and its ``state`` is one of ``STORES``."""
    for key in ("beta1", "beta2"):
        check_beta(f"optimizer.{rule.name}.{key}", getattr(rule, key))
    check_choice(f"optimizer.{rule.name}.state", rule.state, STORES)


def check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ConfigError`` unless a value is one of the choices.

    Args:
        field: name of the setting, for the error.
        value: the value that was given.
        choices: the values that are allowed.

    Raises:
        ConfigError: the value is none of the choices.
    """
    if value not in choices:
        raise ConfigError(field, value, one_of(choices, value))


def check_matrix(rule: str, name: str, shape: tuple[int, ...]) -> None:
    """Raise ``ConfigError`` unless a parameter is a matrix with entries.

    Args:
        rule: name of the rule, for the error.
        name: name of the parameter.
        shape: shape of the whole parameter.

    Raises:
        ConfigError: the shape does not have two sides, or one of them is 0.
    """
    if len(shape) != 2 or 0 in shape:
        raise ConfigError(f"optimizer.{rule}", f"{name} of shape {list(shape)}", "must be a matrix; give it to adamw")
