"""LIFT: Adam on the entries of a matrix that are large in its low-rank approximation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from fedcompress.optim.base import (
    MATRIX,
    ShardInfo,
    State,
    check_choice,
    check_moments,
    check_positive,
)
from fedcompress.optim.state.adam_moments import adam
from fedcompress.optim.state.bases import basis_of
from fedcompress.optim.state.projection import larger_side, to_full, to_low
from fedcompress.optim.state.sparse import check_indexed, masked, moved

BASES: tuple[str, ...] = ("svd", "randomized")


@dataclass(frozen=True, kw_only=True)
class LIFT:
    """Adam on ``(m + n) * rank`` entries, the largest of the weight's approximation of rank ``filter_rank``.

    Liu et al. 2025 (arXiv:2506.00772, algorithm 1), with the released code's defaults, its eps and its
    one age for all entries: new ones start with moments of 0 and no correction of their own. Entries
    that stay selected keep their moments. Positions are kept as int32. Other entries neither move nor decay; in
    the released code decay falls on a copy and is lost. Each matrix refreshes at steps of its own, there all at
    once. What is no matrix goes to the rule of the rest; the paper leaves it frozen.

    Args:
        rank: of the LoRA with as many parameters.
        filter_rank: of the approximation; at most the smaller side is used.
        update_gap: steps between refreshes.
        basis: ``svd`` is exact, ``randomized`` cheaper.
    """

    name: ClassVar[str] = "lift"
    placement: ClassVar[str] = MATRIX
    moments: ClassVar[Mapping[str, bool]] = {"m": True, "v": False}
    needs_weight: ClassVar[bool] = True
    decays: ClassVar[bool] = True
    rank: int = 128
    filter_rank: int = 128
    update_gap: int = 200
    basis: str = "svd"
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    state: str = "fp32"

    def __post_init__(self) -> None:
        for name in ("rank", "filter_rank", "update_gap", "eps"):
            check_positive(f"optimizer.lift.{name}", getattr(self, name))
        check_choice("optimizer.lift.basis", self.basis, BASES)
        check_moments(self)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Matrices."""
        check_indexed(self.name, name, shape)

    def count(self, shape: tuple[int, ...]) -> int:
        """Entries that are trained."""
        return min(sum(shape) * self.rank, prod(shape))

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Two moments for each trained entry."""
        return {"m": self.count(shape), "v": self.count(shape)}

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """The positions."""
        return 4 * self.count(shape)

    def positions(self, weight: Any, part: ShardInfo, refresh: int) -> Any:
        """Of the entries to train, ascending; int32."""
        import torch

        side, rank = larger_side(part.shape), min(self.filter_rank, *part.shape)
        basis = basis_of(weight, rank, self.basis, side=side, generator=part.generator(refresh))
        size = to_full(to_low(weight, basis, side), basis, side).abs_()
        return size.view(-1).topk(self.count(part.shape), sorted=False).indices.sort().values.to(torch.int32)

    def update(self, grad: Any, state: State, step: int, part: ShardInfo, weight: Any) -> tuple[Any, State]:
        """One step."""
        refresh = part.refresh(step, self.update_gap)
        if state.get("refresh") != refresh:
            places = self.positions(weight, part, refresh)
            state = moved(state, places) | {"age": state.get("age", 0)}
        age = state["age"] + 1
        delta, kept = masked(
            grad,
            weight,
            state,
            part.weight_decay,
            lambda g, s: adam(g, s, age, (self.beta1, self.beta2), self.eps, plain_eps=True),
        )
        return delta, kept | {"age": age, "refresh": refresh}
