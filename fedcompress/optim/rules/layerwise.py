"""BAdam and LISA train a few layers at a time with Adam, and keep no state for the others.

Which layers are active depends on the seed, the round and the number of the interval alone, so it is the same for all
parameters, ranks and sites. Layers that are not active neither move nor decay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from fedcompress.errors import ConfigError
from fedcompress.numerics.philox import hash_seed
from fedcompress.optim.base import (
    EPOCH_STRIDE,
    ShardInfo,
    StepContext,
    check_choice,
    check_moments,
    check_positive,
)
from fedcompress.optim.rules.elementwise import ElementwiseRule
from fedcompress.optim.state.adam_moments import AgedMoments, adam

if TYPE_CHECKING:
    from torch import Tensor

ORDERS: tuple[str, ...] = ("random", "descending", "ascending")
OTHERS: tuple[str, ...] = ("frozen", "trained")


def find_active_layer(shard: ShardInfo, refresh: int, order: str) -> int:
    """Return the one layer that is trained in an interval; each layer has one interval in a pass over all.

    An epoch begins one place after the last one began, so that rounds of any length visit all layers.

    Args:
        shard: any shard of the model; its ``seed`` and its number of ``layers`` are used.
        refresh: number of the interval, common to all parameters.
        order: one of ``ORDERS``; ``random`` is drawn for each pass, without replacement.

    Returns:
        Number of the layer.
    """
    import torch

    epoch, interval = divmod(refresh, EPOCH_STRIDE)
    number, place = divmod(epoch + interval, shard.layers)
    match order:
        case "ascending":
            return place
        case "descending":
            return shard.layers - 1 - place
        case _:
            generator = torch.Generator().manual_seed(hash_seed(shard.seed, "layers", number))
            return int(torch.randperm(shard.layers, generator=generator)[place])


def sample_layers(shard: ShardInfo, refresh: int, count: int) -> set[int]:
    """Draw the layers that are trained in an interval, uniformly and independently of other intervals.

    Args:
        shard: any shard of the model; its ``seed`` and its number of ``layers`` are used.
        refresh: number of the interval, common to all parameters.
        count: how many layers are drawn; all if the model has fewer.

    Returns:
        Numbers of the layers.
    """
    import torch

    generator = torch.Generator().manual_seed(hash_seed(shard.seed, "layers", refresh))
    return set(torch.randperm(shard.layers, generator=generator)[:count].tolist())


class LayerwiseState(AgedMoments, total=False):
    """A layerwise rule keeps Adam's moments, shape (shard.numel,), while the parameter is active, and else nothing."""

    interval: int  # number of the interval that the moments belong to; those of another one are dropped


@dataclass(frozen=True, kw_only=True)
class Layerwise(ElementwiseRule):
    """A layerwise rule runs Adam in active parameters; others neither move nor have state.

    Args:
        update_gap: steps of one interval.
        beta1: decay rate of the first moment.
        beta2: decay rate of the second moment.
        eps: added to the root of the second moment after the correction of its bias.
        state: how the moments are stored between steps.
    """

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

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the sizes of two moments with a number for each entry, which exist while the parameter is active."""
        return {"m": prod(shape), "v": prod(shape)}

    def is_active(self, shard: ShardInfo, refresh: int) -> bool:
        """Return whether a parameter is trained in an interval; each rule decides that."""
        raise NotImplementedError

    def interval(self, shard: ShardInfo, refresh: int) -> int:
        """Return the number that moments are labelled with: those with another label are dropped."""
        return refresh

    def active_share(self, layer: int, layers: int) -> float:
        """Return the share of the time in which a parameter of a layer, or of none (-1), is active."""
        raise NotImplementedError

    def update(
        self, grad: Tensor, state: LayerwiseState, shard: ShardInfo, context: StepContext, weight: Tensor
    ) -> tuple[Tensor, LayerwiseState]:
        """Take Adam's step if the parameter is active; else return zeros and an empty state.

        Raises:
            ConfigError: the model has no numbered layers.
        """
        if not shard.layers:
            raise ConfigError(f"optimizer.{self.name}", shard.name, "needs a model whose names number its layers")
        refresh = context.common_refresh_number(self.update_gap)
        if not self.is_active(shard, refresh):
            return grad.new_zeros(grad.shape), {}
        interval = self.interval(shard, refresh)
        if state.get("interval") != interval:
            state = {}
        age = state.get("age", 0) + 1
        delta, moments = adam(grad, state, age, (self.beta1, self.beta2), self.eps)
        if context.weight_decay:
            delta.add_(weight, alpha=context.weight_decay)
        return delta, {**moments, "age": age, "interval": interval}


@dataclass(frozen=True, kw_only=True)
class BAdam(Layerwise):
    """BAdam trains one layer after another with Adam, and drops all state of layers at each switch.

    Luo et al. 2024 (arXiv:2404.02827, algorithm 1), with the released code's interval and its frozen embeddings, head
    and last norm. The default order is the paper's random reshuffling, where the code's default is ``descending``.
    The released code also keeps a float32 copy of the active layer; here the caller's weights are stepped as they are.
    With DeepSpeed the optimizer stays the same at a switch, where the released code makes its groups anew.

    >>> from fedcompress.optim.preview import preview_step
    >>> preview_step("badam")
    StepPreview(moved=1.0, downhill=1.0, state_bytes=384)

    Args:
        update_gap: steps on one layer.
        order: ``random`` without replacement, ``descending`` or ``ascending``.
        others: parameters outside of the layers are ``frozen``, or ``trained`` in every interval, in which case their
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

    def is_active(self, shard: ShardInfo, refresh: int) -> bool:
        """Return whether the parameter is in the layer of the interval, or in none while ``others=trained``."""
        if shard.layer < 0:
            return self.others == "trained"
        return shard.layer == find_active_layer(shard, refresh, self.order)

    def interval(self, shard: ShardInfo, refresh: int) -> int:
        """Return the interval, or 0 for parameters outside of the layers, whose moments are never dropped."""
        return refresh if shard.layer >= 0 else 0

    def active_share(self, layer: int, layers: int) -> float:
        """Return ``1 / layers`` for a parameter of a layer: one layer is active at a time."""
        return 1 / layers if layer >= 0 else float(self.others == "trained")


@dataclass(frozen=True, kw_only=True)
class LISA(Layerwise):
    """LISA trains a few layers, drawn anew every ``update_gap`` steps, and all parameters outside of the layers.

    Pan et al. 2024 (arXiv:2403.17919, algorithm 1), with the two layers and the interval of 20 of the released
    scripts, drawn uniformly. The released code first froze layers without freeing their state, and later dropped all
    state at a switch. Here state exists for active layers only, and a layer that is drawn again at once, or a parameter
    in no layer, goes on with its moments.

    >>> from fedcompress.optim.preview import preview_step
    >>> preview_step("lisa(layers=1)")
    StepPreview(moved=1.0, downhill=1.0, state_bytes=384)

    Args:
        layers: how many layers are active at once; all if the model has fewer.
        update_gap: steps between draws.
    """

    name: ClassVar[str] = "lisa"
    layers: int = 2
    update_gap: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("optimizer.lisa.layers", self.layers)

    def is_active(self, shard: ShardInfo, refresh: int) -> bool:
        """Return whether the parameter's layer is drawn, or the parameter is in no layer."""
        return shard.layer < 0 or shard.layer in sample_layers(shard, refresh, self.layers)

    def interval(self, shard: ShardInfo, refresh: int) -> int:
        """Return 0: a layer that is left loses its state, so any state that exists is of a layer that stayed."""
        return 0

    def active_share(self, layer: int, layers: int) -> float:
        """Return the share of the layers that are active at a time, and 1 for parameters in no layer."""
        return min(self.layers, layers) / layers if layer >= 0 else 1.0
