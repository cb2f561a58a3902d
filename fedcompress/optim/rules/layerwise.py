"""BAdam and LISA: Adam in a few layers at a time, and no state elsewhere.

Which layers are active depends on the seed, the round and the number of the interval alone, so all
parameters, ranks and sites have the same. Others neither move nor decay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from fedcompress.errors import ConfigError
from fedcompress.optim.base import (
    ELEMENTWISE,
    EPOCH,
    ShardInfo,
    State,
    check_choice,
    check_moments,
    check_positive,
    derive_seed,
)
from fedcompress.optim.state.adam_moments import adam

ORDERS: tuple[str, ...] = ("random", "descending", "ascending")
OTHERS: tuple[str, ...] = ("frozen", "trained")


def block_at(part: ShardInfo, refresh: int, order: str) -> int:
    """The one layer of an interval: each once in a pass.

    A round begins one place after the last began, so that rounds of any length visit all layers.

    Args:
        part: of any parameter.
        refresh: number of the interval.
        order: of ``ORDERS``; ``random`` is drawn for each pass, without replacement.
    """
    import torch

    epoch, interval = divmod(refresh, EPOCH)
    number, place = divmod(epoch + interval, part.layers)
    match order:
        case "ascending":
            return place
        case "descending":
            return part.layers - 1 - place
        case _:
            generator = torch.Generator().manual_seed(derive_seed(part.seed, "layers", number))
            return int(torch.randperm(part.layers, generator=generator)[place])


def sample_at(part: ShardInfo, refresh: int, count: int) -> set[int]:
    """So many layers, each interval drawn by itself."""
    import torch

    generator = torch.Generator().manual_seed(derive_seed(part.seed, "layers", refresh))
    return set(torch.randperm(part.layers, generator=generator)[:count].tolist())


@dataclass(frozen=True, kw_only=True)
class Layerwise:
    """What both rules do: Adam in active parameters, nothing and no state in others."""

    placement: ClassVar[str] = ELEMENTWISE
    moments: ClassVar[Mapping[str, bool]] = {"m": True, "v": False}
    needs_weight: ClassVar[bool] = True
    decays: ClassVar[bool] = True
    name: ClassVar[str]
    update_gap: int
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    state: str = "fp32"

    def __post_init__(self) -> None:
        check_positive(f"optimizer.{self.name}.update_gap", self.update_gap)
        check_moments(self)
        check_positive(f"optimizer.{self.name}.eps", self.eps)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Any parameter."""

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Two moments for each entry, while the parameter is active; at other times none."""
        return {"m": prod(shape), "v": prod(shape)}

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """None."""
        return 0

    def active(self, part: ShardInfo, refresh: int) -> bool:
        """Whether a parameter is trained in an interval; each rule says."""
        raise NotImplementedError

    def interval(self, part: ShardInfo, refresh: int) -> int:
        """What moments are of: those of another are dropped."""
        return refresh

    def active_share(self, layer: int, layers: int) -> float:
        """Share of the time that a parameter of a layer, or of none, is active; each rule says."""
        raise NotImplementedError

    def update(self, grad: Any, state: State, step: int, part: ShardInfo, weight: Any) -> tuple[Any, State]:
        """One step.

        Raises:
            ConfigError: the model has no layers.
        """
        if not part.layers:
            raise ConfigError(f"optimizer.{self.name}", part.name, "needs a model whose names number its layers")
        refresh = part.refresh(step - part.before, self.update_gap, staggered=False)
        if not self.active(part, refresh):
            return grad.new_zeros(grad.shape), {}
        interval = self.interval(part, refresh)
        if state.get("interval") != interval:
            state = {}
        age = state.get("age", 0) + 1
        delta, kept = adam(grad, state, age, (self.beta1, self.beta2), self.eps)
        if part.weight_decay:
            delta.add_(weight, alpha=part.weight_decay)
        return delta, kept | {"age": age, "interval": interval}


@dataclass(frozen=True, kw_only=True)
class BAdam(Layerwise):
    """Adam on one layer after another; at each switch all state of layers is dropped.

    Luo et al. 2024 (arXiv:2404.02827, algorithm 1), with the released code's interval and its frozen
    embeddings, head and last norm. The default order is the paper's random reshuffling, not the code's
    ``descending``. The released code also keeps a float32 copy of the active layer;
    here the caller's weights are what they are. With DeepSpeed the optimizer stays the same at
    a switch, there its groups are made anew.

    Args:
        update_gap: steps on one layer.
        order: ``random`` without replacement, ``descending`` or ``ascending``.
        others: parameters outside the layers: ``frozen``, or ``trained`` in every interval, whose
            state is kept.
    """

    name: ClassVar[str] = "badam"
    update_gap: int = 50
    order: str = "random"
    others: str = "frozen"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("optimizer.badam.order", self.order, ORDERS)
        check_choice("optimizer.badam.others", self.others, OTHERS)

    def active(self, part: ShardInfo, refresh: int) -> bool:
        """The layer of the interval."""
        if part.layer < 0:
            return self.others == "trained"
        return part.layer == block_at(part, refresh, self.order)

    def interval(self, part: ShardInfo, refresh: int) -> int:
        """Others that are trained are never left."""
        return refresh if part.layer >= 0 else 0

    def active_share(self, layer: int, layers: int) -> float:
        """One layer at a time."""
        return 1 / layers if layer >= 0 else float(self.others == "trained")


@dataclass(frozen=True, kw_only=True)
class LISA(Layerwise):
    """AdamW on a few layers that are drawn anew every ``update_gap`` steps, and on all that is outside of them.

    Pan et al. 2024 (arXiv:2403.17919, algorithm 1), with the released scripts' two layers and
    interval of 20, drawn uniformly. Released code first froze layers without freeing their state, and later
    dropped all state at a switch; here state exists for active layers only, and what is drawn again
    at once, or is in no layer, goes on with its moments.

    Args:
        layers: that are active at once; all if the model has fewer.
        update_gap: steps between draws.
    """

    name: ClassVar[str] = "lisa"
    layers: int = 2
    update_gap: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("optimizer.lisa.layers", self.layers)

    def active(self, part: ShardInfo, refresh: int) -> bool:
        """Layers that are drawn, and what is in none."""
        return part.layer < 0 or part.layer in sample_at(part, refresh, self.layers)

    def interval(self, part: ShardInfo, refresh: int) -> int:
        """State of a layer that is left is freed; what is there is of one that stayed."""
        return 0

    def active_share(self, layer: int, layers: int) -> float:
        """So many layers at a time."""
        return min(self.layers, layers) / layers if layer >= 0 else 1.0
