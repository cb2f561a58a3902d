"""Q-GaLore: GaLore whose basis has 4 bits an entry and is drawn anew ever less often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fedcompress.errors import ConfigError
from fedcompress.optim.base import MATRIX, ShardInfo, State, check_choice, check_moments, check_positive
from fedcompress.optim.state.adam_moments import adam
from fedcompress.optim.state.bases import basis_of
from fedcompress.optim.state.projection import check_rank, larger_side, to_full, to_low

BASES = ("svd", "randomized", "power")
LEVELS = 15


@dataclass(frozen=True, kw_only=True)
class QGaLore:
    """``scale * back(Adam(project(g)))``, with a basis of int4 and an interval that doubles where it settles.

    Zhang et al. 2024 (arXiv:2407.08296: lazy layer-wise subspaces, int4 projection), with the released code's
    defaults. At each refresh, the cosine of the leading directions of the old basis and the new one is
    noted; while the mean of the last ``window`` is at least ``threshold``, the interval of that
    matrix doubles each time. The moments stay. The basis is rounded to 16 levels between the least and the
    greatest of each group.

    Where we differ: a singular vector's sign is arbitrary, so the cosine is taken without it; the old direction
    is that of the rounded basis, where the released code keeps another copy; a last
    group may be short; weights in int8 are the model's affair. Each matrix refreshes at steps of its own.

    Args:
        rank: of the subspace; at most the smaller side.
        update_gap: steps between refreshes, at first.
        scale: of the step.
        basis: ``svd`` is the paper's; ``randomized`` and ``power`` (warm-started) cost a tenth of it.
        threshold: of the mean cosine.
        window: cosines in the mean.
        group: entries of the basis that share a scale.
    """

    name: ClassVar[str] = "q-galore"
    placement: ClassVar[str] = MATRIX
    moments: ClassVar[Mapping[str, bool]] = {"m": True, "v": False}
    needs_weight: ClassVar[bool] = False
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

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Matrices whose smaller side is at least the rank."""
        check_rank(self.name, self.rank, name, shape)

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Two moments in the subspace."""
        return {"m": self.rank * max(shape), "v": self.rank * max(shape)}

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """Half a byte for each entry of the basis, 5 bytes for each group, the cosines."""
        numel = self.rank * min(shape)
        return -(-numel // 2) + 5 * -(-numel // self.group) + 4 * self.window

    def update(self, grad: Any, state: State, step: int, part: ShardInfo, weight: Any) -> tuple[Any, State]:
        """One step."""
        side, gap = larger_side(part.shape), state.get("gap", self.update_gap)
        if state.get("refresh") != part.refresh(step, gap):
            state = self._refreshed(grad, state, step, part, side)
        basis, age = self._unrounded(state, part), state.get("age", 0) + 1
        inner, kept = adam(to_low(grad, basis, side), state, age, (self.beta1, self.beta2), self.eps)
        return to_full(inner, basis, side).mul_(self.scale), state | kept | {"age": age}

    def _refreshed(self, grad: Any, state: State, step: int, part: ShardInfo, side: str) -> State:
        """State with a new basis and the interval that follows from it."""
        import torch

        gap, before = state.get("gap", self.update_gap), None
        cosines, seen = grad.new_zeros(self.window), state.get("seen", 0)
        if "codes" in state:
            before, cosines, seen = self._unrounded(state, part), state["cosines"], seen + 1
        generator = part.generator(part.refresh(step, gap))
        basis = basis_of(grad, self.rank, self.basis, side=side, before=before, generator=generator)
        if before is not None:
            cosine = torch.cosine_similarity(before[:, 0], basis[:, 0], dim=0).abs()
            cosines = torch.cat([cosines[1:], cosine[None]])
            if seen >= self.window and float(cosines.mean()) >= self.threshold:
                gap *= 2
        moments = {"cosines": cosines, "seen": seen, "gap": gap, "refresh": part.refresh(step, gap)}
        return state | moments | self._rounded(basis)

    def _rounded(self, basis: Any) -> State:
        """Two codes to a byte; a scale and the code of 0 for each group."""
        import torch

        flat = basis.reshape(1, 1, -1)
        groups = torch.nn.functional.pad(flat, (0, -flat.numel() % self.group), "replicate").view(-1, self.group)
        least, most = groups.amin(1), groups.amax(1)
        scales = (most - least).clamp_(min=1e-5) / LEVELS
        zeros = (-least / scales).round_().clamp_(0, LEVELS)
        codes = (groups / scales[:, None]).round_().add_(zeros[:, None]).clamp_(0, LEVELS)
        codes = codes.to(torch.uint8).view(-1)[: flat.numel()]
        codes = torch.nn.functional.pad(codes, (0, codes.numel() % 2))
        return {"codes": codes[::2] | codes[1::2] << 4, "scales": scales, "zeros": zeros.to(torch.uint8)}

    def _unrounded(self, state: State, part: ShardInfo) -> Any:
        """The basis, shape (smaller side, rank)."""
        import torch

        numel, packed = min(part.shape) * self.rank, state["codes"]
        codes = torch.stack([packed & LEVELS, packed >> 4], 1).view(-1)[:numel].float()
        group = torch.arange(numel, device=codes.device) // self.group
        return ((codes - state["zeros"].float()[group]) * state["scales"][group]).view(-1, self.rank)
