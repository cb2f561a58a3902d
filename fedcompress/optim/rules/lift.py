"""LIFT runs Adam on the entries of a matrix that are large in its low-rank approximation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from fedcompress.optim.base import MATRIX, ShardInfo, StepContext, check_choice, check_moments, check_positive
from fedcompress.optim.state.adam_moments import adam
from fedcompress.optim.state.bases import compute_basis
from fedcompress.optim.state.projection import choose_side, project, project_back
from fedcompress.optim.state.sparse import SparseMoments, check_indexable, move_moments, step_entries

if TYPE_CHECKING:
    from torch import Tensor

BASES: tuple[str, ...] = ("svd", "randomized")


class LIFTState(SparseMoments, total=False):
    """LIFT keeps Adam's moments and the places of the k = min((m + n) * rank, m * n) entries that it trains."""

    age: int  # steps so far; one number for all entries, also for those that were selected later
    refresh: int  # number of the refresh interval that the entries were selected in


@dataclass(frozen=True, kw_only=True)
class LIFT:
    """LIFT runs Adam on the ``(m + n) * rank`` entries that are largest in the weight's rank-limited approximation.

    Liu et al. 2025 (arXiv:2506.00772, algorithm 1), with the released code's defaults, its eps, and its one age for all
    entries: new ones start with moments of 0 and have no bias correction of their own. Entries that stay selected keep
    their moments. Places are stored as int32. Other entries neither move nor decay; in the released code decay falls on
    a copy and is lost. Each matrix refreshes at steps of its own, there all at once. A parameter that is no matrix goes
    to the rule of the rest; the paper leaves it frozen.

    >>> from fedcompress.optim.preview import preview_step
    >>> preview_step("lift(rank=1)")
    StepPreview(moved=0.29, downhill=1.0, state_bytes=168)

    Args:
        rank: rank of the LoRA that would have as many parameters.
        filter_rank: rank of the approximation; at most the smaller side is used.
        update_gap: steps between selections.
        basis: how the approximation is computed: ``svd`` is exact, ``randomized`` cheaper.
        beta1: decay rate of the first moment.
        beta2: decay rate of the second moment.
        eps: added to the root of the second moment before the correction of its bias.
        state: how the moments are stored between steps.
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
        """Accept matrices whose places fit into int32."""
        check_indexable(self.name, name, shape)

    def count_trained(self, shape: tuple[int, ...]) -> int:
        """Return how many entries of a matrix are trained."""
        return min(sum(shape) * self.rank, prod(shape))

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the sizes of two moments for each trained entry."""
        numel = self.count_trained(shape)
        return {"m": numel, "v": numel}

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of the places, an int32 for each trained entry."""
        return 4 * self.count_trained(shape)

    def update(
        self, grad: Tensor, state: LIFTState, shard: ShardInfo, context: StepContext, weight: Tensor
    ) -> tuple[Tensor, LIFTState]:
        """Select entries anew if that is due, and take Adam's step on the selected ones."""
        refresh = context.refresh_number(shard, self.update_gap)
        sparse: SparseMoments = state
        if state.get("refresh") != refresh:
            sparse = move_moments(state, self._select_places(weight, shard, refresh))
        age = state.get("age", 0) + 1
        betas = (self.beta1, self.beta2)
        delta, new_state = step_entries(
            grad,
            weight,
            sparse,
            context.weight_decay,
            lambda entries, moments: adam(entries, moments, age, betas, self.eps, plain_eps=True),
        )
        return delta, {**new_state, "age": age, "refresh": refresh}

    def _select_places(self, weight: Tensor, shard: ShardInfo, refresh: int) -> Tensor:
        """Return the places of the entries to train, ascending; int32, shape (k,)."""
        import torch

        side = choose_side(shard.shape)
        rank = min(self.filter_rank, *shard.shape)
        basis = compute_basis(weight, rank, self.basis, side=side, generator=shard.generator(refresh))
        size = project_back(project(weight, basis, side), basis, side).abs_()
        largest = size.view(-1).topk(self.count_trained(shard.shape), sorted=False).indices
        return largest.sort().values.to(torch.int32)
