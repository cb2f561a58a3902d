"""LoRA factors merged in the gauge of the published state: mean A, ridge least-squares B."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Unit
from fedcompress.merging.mean import Mean, Sums
from fedcompress.types import Array, Tensors

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class _State:
    names: tuple[str, str]  # of A and B
    a0: Matrix  # (r, n_in), published
    b0: Matrix  # (n_out, r), published
    factors: tuple[tuple[float, Matrix, Matrix], ...] = ()  # weight, A_i, B_i


@dataclass(frozen=True, kw_only=True)
class LoraRidge:
    """For each module, with A_i = A + dA_i, B_i = B + dB_i and M = sum_i w_i B_i A_i::

        A' = sum_i w_i A_i
        B' = argmin_X |X A' - M|^2 + lam |X - sum_i w_i B_i|^2
           = (M A'^T + lam mean(B)) (A' A'^T + lam I)^-1,   lam = ridge * trace(A' A'^T) / r

    M is never formed: M A'^T = sum_i w_i B_i (A_i A'^T). The mean of A keeps the gauge of
    the published state, which matters more to a compressed downlink than the last bit of
    merge error. The ridge pulls towards the mean of B, not towards zero, so that merging a
    single update with weight 1 returns that update. Tensors outside a LoRA pair get the
    weighted mean. Memory: O(sites) for the factors of one module.
    """

    name: ClassVar[str] = "lora-ridge"
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        if not 1e-9 <= self.ridge <= 1e6:  # less does not regularise in float64 when A' lacks rank
            raise ConfigError("rule.lora-ridge.ridge", self.ridge, "must be from 1e-9 to 1e6")

    def init(self, unit: Unit, base: Mapping[str, Array]) -> _State | Sums:
        """Published factors of the module, or zeros for a lone tensor."""
        if unit.a is None or unit.b is None:
            return Mean().init(unit, base)
        names = unit.a.name, unit.b.name
        return _State(names, base[unit.a.name].astype(np.float64), base[unit.b.name].astype(np.float64))

    def fold(self, state: _State | Sums, weight: float, delta: Mapping[str, Array]) -> _State | Sums:
        """Add one site's factors."""
        if not isinstance(state, _State):
            return Mean().fold(state, weight, delta)
        name_a, name_b = state.names
        a = state.a0 + delta[name_a].astype(np.float64)
        b = state.b0 + delta[name_b].astype(np.float64)
        return replace(state, factors=(*state.factors, (weight, a, b)))

    def finish(self, state: _State | Sums) -> Tensors:
        """New factors minus the published ones, float32."""
        if not isinstance(state, _State):
            return Mean().finish(state)
        zero = np.zeros_like
        a_mean: Matrix = sum((w * a for w, a, _ in state.factors), zero(state.a0))
        b_mean: Matrix = sum((w * b for w, _, b in state.factors), zero(state.b0))
        gram = a_mean @ a_mean.T
        rank = gram.shape[0]
        lam = self.ridge * float(np.trace(gram)) / max(rank, 1)
        b_new = b_mean
        if lam > 0 and len(state.factors) > 1:
            target: Matrix = sum((w * (b @ (a @ a_mean.T)) for w, a, b in state.factors), zero(state.b0))
            b_new = np.linalg.solve(gram + lam * np.eye(rank), (target + lam * b_mean).T).T
        name_a, name_b = state.names
        with np.errstate(over="ignore"):  # infinity is refused when the step is encoded
            return {
                name_a: (a_mean - state.a0).astype(np.float32),
                name_b: (b_new - state.b0).astype(np.float32),
            }
