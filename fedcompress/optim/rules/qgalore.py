"""Q-GaLore is GaLore with a basis of 4 bits an entry, which is computed anew ever less often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypedDict

from fedcompress.errors import ConfigError
from fedcompress.optim.base import ShardInfo, StepContext, check_choice, check_moments, check_positive
from fedcompress.optim.rules.subspace import SubspaceRule
from fedcompress.optim.state.adam_moments import AgedMoments, adam
from fedcompress.optim.state.bases import compute_basis
from fedcompress.optim.state.projection import choose_side, project, project_back

if TYPE_CHECKING:
    from torch import Tensor

BASES = ("svd", "randomized", "power")
LEVELS = 15  # steps between the least and the greatest code of 4 bits


class RoundedBasis(TypedDict, total=False):
    """A basis of k = min(m, n) * rank entries, rounded to 4 bits in groups of ``group`` entries."""

    codes: Tensor  # two codes a byte, the earlier one in the low bits; uint8, shape (ceil(k / 2),)
    scales: Tensor  # width of one step in each group; float32, shape (ceil(k / group),)
    zeros: Tensor  # code that stands for 0 in each group; uint8, shape (ceil(k / group),)


class QGaLoreState(AgedMoments, RoundedBasis, total=False):
    """Q-GaLore keeps Adam's moments and a rounded basis, for a weight of shape (m, n).

    The moments have shape (m, rank) where m >= n, and (rank, n) otherwise.
    """

    cosines: Tensor  # how well the leading direction stayed at the last refreshes, latest last; float32, (window,)
    seen: int  # number of refreshes that gave a cosine
    gap: int  # steps between refreshes at present
    refresh: int  # number of the refresh interval that the basis was computed in, counted with ``gap``


@dataclass(frozen=True, kw_only=True)
class QGaLore(SubspaceRule):
    """Q-GaLore steps along ``scale * back(Adam(project(g)))``, with an int4 basis and an interval that may double.

    Zhang et al. 2024 (arXiv:2407.08296: lazy layer-wise subspaces, int4 projection), with the released code's defaults.
    At each refresh, the cosine of the leading directions of the old basis and the new one is noted. While the mean of
    the last ``window`` cosines is at least ``threshold``, the interval of that matrix doubles each time. The moments
    stay. The basis is rounded to 16 levels between the least and the greatest entry of each group.

    It differs from the released code in this: a singular vector's sign is arbitrary, so the cosine is taken without it;
    the old direction is that of the rounded basis, where the code keeps another copy; the last group may be short;
    weights in int8 are left to the model. Each matrix refreshes at steps of its own.

    >>> from fedcompress.optim.preview import preview_step
    >>> preview_step("q-galore(rank=2)")
    StepPreview(moved=1.0, downhill=0.69, state_bytes=159)

    Args:
        rank: number of directions; a matrix whose smaller side is below it has as many as that.
        update_gap: steps between refreshes, at first.
        scale: factor of the step.
        basis: how the basis is computed. ``svd`` is the paper's; ``randomized`` and ``power``, which starts from the
            last basis, cost a tenth of it.
        threshold: mean cosine from which on the interval doubles.
        window: number of cosines in the mean.
        group: entries of the basis that share a scale.
        beta1: decay rate of the first moment.
        beta2: decay rate of the second moment.
        eps: added to the root of the second moment after the correction of its bias.
        state: how the moments are stored between steps.
    """

    name: ClassVar[str] = "q-galore"
    rank: int = 128
    update_gap: int = 200
    scale: float = 0.25
    basis: str = "svd"
    threshold: float = 0.4
    window: int = 5
    group: int = 256
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    state: str = "8bit"

    def __post_init__(self) -> None:
        for name in ("rank", "update_gap", "scale", "window", "group", "eps"):
            check_positive(f"optimizer.q-galore.{name}", getattr(self, name))
        check_choice("optimizer.q-galore.basis", self.basis, BASES)
        if not 0 < self.threshold <= 1:
            raise ConfigError("optimizer.q-galore.threshold", self.threshold, "must be above 0 and at most 1")
        check_moments(self)

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of the basis: half a byte an entry and 5 bytes a group; and of the cosines."""
        numel = self.count_directions(shape) * min(shape)
        return -(-numel // 2) + 5 * -(-numel // self.group) + 4 * self.window

    def update(
        self, grad: Tensor, state: QGaLoreState, shard: ShardInfo, context: StepContext, weight: Tensor | None
    ) -> tuple[Tensor, QGaLoreState]:
        """Take Adam's step in the subspace of the rounded basis and bring it back to full size."""
        side = choose_side(shard.shape)
        gap = state.get("gap", self.update_gap)
        if state.get("refresh") != context.refresh_number(shard, gap):
            state = self._refresh_basis(grad, state, shard, context, side)
        basis = self._restore_basis(state, shard)
        age = state.get("age", 0) + 1
        inner, moments = adam(project(grad, basis, side), state, age, (self.beta1, self.beta2), self.eps)
        return project_back(inner, basis, side).mul_(self.scale), {**state, **moments, "age": age}

    def _refresh_basis(
        self, grad: Tensor, state: QGaLoreState, shard: ShardInfo, context: StepContext, side: str
    ) -> QGaLoreState:
        """Return the state with a new basis, and with the interval that follows from how far the basis turned."""
        import torch

        gap = state.get("gap", self.update_gap)
        before = None
        cosines = grad.new_zeros(self.window)
        seen = state.get("seen", 0)
        if "codes" in state:
            before = self._restore_basis(state, shard)
            cosines = state["cosines"]
            seen += 1
        generator = shard.generator(context.refresh_number(shard, gap))
        rank = self.count_directions(shard.shape)
        basis = compute_basis(grad, rank, self.basis, side=side, before=before, generator=generator)
        if before is not None:
            cosine = torch.cosine_similarity(before[:, 0], basis[:, 0], dim=0).abs()
            cosines = torch.cat([cosines[1:], cosine[None]])
            if seen >= self.window and float(cosines.mean()) >= self.threshold:
                gap *= 2
        refresh = context.refresh_number(shard, gap)
        history: QGaLoreState = {"cosines": cosines, "seen": seen, "gap": gap, "refresh": refresh}
        return {**state, **history, **self._round_basis(basis)}

    def _round_basis(self, basis: Tensor) -> RoundedBasis:
        """Round a float32 basis, shape (min(m, n), rank), to 4 bits an entry."""
        import torch

        flat = basis.reshape(1, 1, -1)
        groups = torch.nn.functional.pad(flat, (0, -flat.numel() % self.group), "replicate").view(-1, self.group)
        least = groups.amin(1)
        most = groups.amax(1)
        scales = (most - least).clamp_(min=1e-5) / LEVELS
        zeros = (-least / scales).round_().clamp_(0, LEVELS)
        codes = (groups / scales[:, None]).round_().add_(zeros[:, None]).clamp_(0, LEVELS)
        codes = codes.to(torch.uint8).view(-1)[: flat.numel()]
        codes = torch.nn.functional.pad(codes, (0, codes.numel() % 2))
        return {"codes": codes[::2] | codes[1::2] << 4, "scales": scales, "zeros": zeros.to(torch.uint8)}

    def _restore_basis(self, state: RoundedBasis, shard: ShardInfo) -> Tensor:
        """Return the rounded basis as float32, shape (min(m, n), rank)."""
        import torch

        rank = self.count_directions(shard.shape)
        numel = min(shard.shape) * rank
        packed = state["codes"]
        codes = torch.stack([packed & LEVELS, packed >> 4], 1).view(-1)[:numel].float()
        group = torch.arange(numel, device=codes.device) // self.group
        return ((codes - state["zeros"].float()[group]) * state["scales"][group]).view(-1, rank)
