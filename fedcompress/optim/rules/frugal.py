"""FRUGAL runs Adam in a part of each matrix, and a rule without state in the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedcompress.optim.base import (
    ELEMENTWISE,
    MATRIX,
    ShardInfo,
    StepContext,
    check_choice,
    check_matrix,
    check_moments,
    check_positive,
    check_share,
)
from fedcompress.optim.state.adam_moments import AgedMoments, adam
from fedcompress.optim.state.bases import BASES, compute_basis
from fedcompress.optim.state.projection import CARRIES, carry_moments, choose_side, project, project_back
from fedcompress.optim.state.selections import SELECTIONS, count_selected, select_entries

if TYPE_CHECKING:
    from torch import Tensor

FREE = ("sign", "sgd", "none")


class FrugalState(AgedMoments, total=False):
    """FRUGAL keeps Adam's moments of the part that P selects or spans.

    Where P selects entries, ``m`` and ``v`` have shape (k,): one number for each of the k selected entries of the
    shard, in ascending order of their places. Where P is a basis, for a weight of shape (m, n), they have shape
    (m, rank) if m >= n and (rank, n) otherwise.
    """

    basis: Tensor  # orthonormal columns; float32, shape (min(m, n), rank); absent where P selects entries
    refresh: int  # number of the refresh interval that P was drawn in


@dataclass(frozen=True, kw_only=True)
class Frugal:
    """FRUGAL steps along ``scale * Adam(P g) + free_scale * sign(g - P^T P g)``, and renews P in intervals.

    Zmushko et al. 2024 (arXiv:2411.07837, algorithm 1), with the released code's defaults for pre-training; fine-tuning
    there has ``free_scale=0.1``. With ``columns``, ``rows``, ``blocks`` (whole matrices in turn) and ``randk`` the rule
    runs on any shard; with the other projections it needs whole matrices. The released code keeps 16 bytes of indices
    for each entry of ``randk``; here they are drawn again from the seed. Each matrix refreshes at steps of its own,
    there all at once; ``blocks`` change for all matrices together.

    >>> from fedcompress.optim.preview import preview_step
    >>> preview_step("frugal(density=0.5)"), preview_step("frugal(projection=svd,density=0.5)").state_bytes
    (StepPreview(moved=1.0, downhill=1.0, state_bytes=192), 264)

    Args:
        density: share of the entries, or of the smaller side, that holds state.
        projection: what P selects (``columns``, ``rows``, ``blocks``, ``randk``) or which basis it spans.
        update_gap: steps between refreshes of P.
        beta1: decay rate of the first moment.
        beta2: decay rate of the second moment.
        eps: added to the root of the second moment after the correction of its bias.
        free: what the rest does: ``sign``, ``sgd`` or ``none``.
        free_scale: factor of the rest's step.
        scale: factor of Adam's step.
        carry: what becomes of the moments at a refresh: ``reset`` (the paper), ``keep``, or ``project`` into the new
            basis.
        state: how the moments are stored between steps.
    """

    name: ClassVar[str] = "frugal"
    moments: ClassVar[Mapping[str, bool]] = {"m": True, "v": False}
    needs_weight: ClassVar[bool] = False
    density: float = 0.25
    projection: str = "columns"
    update_gap: int = 200
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    free: str = "sign"
    free_scale: float = 1.0
    scale: float = 1.0
    carry: str = "reset"
    state: str = "fp32"

    def __post_init__(self) -> None:
        check_share("optimizer.frugal.density", self.density)
        check_choice("optimizer.frugal.projection", self.projection, SELECTIONS + BASES)
        check_positive("optimizer.frugal.update_gap", self.update_gap)
        check_moments(self)
        check_positive("optimizer.frugal.eps", self.eps)
        check_choice("optimizer.frugal.free", self.free, FREE)
        check_choice("optimizer.frugal.carry", self.carry, CARRIES)

    @property
    def placement(self) -> str:
        """Return ``elementwise`` where P selects entries, and ``matrix`` where it is a basis."""
        return ELEMENTWISE if self.projection in SELECTIONS else MATRIX

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Accept matrices, and with ``blocks`` and ``randk`` every parameter."""
        if self.projection not in ("blocks", "randk"):
            check_matrix(self.name, name, shape)

    def rank(self, shape: tuple[int, ...]) -> int:
        """Return the number of directions of a basis."""
        return max(1, round(self.density * min(shape)))

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the sizes of two moments for the selected entries or coordinates."""
        if self.placement == ELEMENTWISE:
            numel = count_selected(shape, self.projection, self.density)
        else:
            numel = self.rank(shape) * max(shape)
        return {"m": numel, "v": numel}

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of the basis; 0 where entries are selected."""
        return 0 if self.placement == ELEMENTWISE else 4 * self.rank(shape) * min(shape)

    def update(
        self, grad: Tensor, state: FrugalState, shard: ShardInfo, context: StepContext, weight: Tensor | None
    ) -> tuple[Tensor, FrugalState]:
        """Take Adam's step in the part that holds state, and the free step in the rest."""
        if self.projection == "blocks":
            refresh = context.common_refresh_number(self.update_gap)
        else:
            refresh = context.refresh_number(shard, self.update_gap)
        if self.placement == ELEMENTWISE:
            return self._step_entries(grad, state, shard, refresh)
        return self._step_subspace(grad, state, shard, refresh)

    def _step_subspace(
        self, grad: Tensor, state: FrugalState, shard: ShardInfo, refresh: int
    ) -> tuple[Tensor, FrugalState]:
        side = choose_side(shard.shape)
        moments: AgedMoments = state
        if state.get("refresh") == refresh:
            basis = state["basis"]
        else:
            before = state.get("basis")
            generator = shard.generator(refresh)
            rank = self.rank(shard.shape)
            basis = compute_basis(grad, rank, self.projection, side=side, before=before, generator=generator)
            moments = carry_moments(state, before, basis, side, self.carry)
        low = project(grad, basis, side)
        age = moments.get("age", 0) + 1
        delta = self._step_free(grad - project_back(low, basis, side))
        inner, new_moments = adam(low, moments, age, (self.beta1, self.beta2), self.eps)
        delta += project_back(inner, basis, side).mul_(self.scale)
        return delta, {
            "m": new_moments["m"],
            "v": new_moments["v"],
            "basis": basis,
            "age": age,
            "refresh": refresh,
        }

    def _step_entries(
        self, grad: Tensor, state: FrugalState, shard: ShardInfo, refresh: int
    ) -> tuple[Tensor, FrugalState]:
        places = select_entries(shard, self.projection, self.density, refresh, grad.device)
        moments: AgedMoments = state
        if state.get("refresh") != refresh:
            moments = self._carry_entries(state, shard, places) if "m" in state else {}
        age = moments.get("age", 0) + 1
        delta = self._step_free(grad)
        inner, new_moments = adam(grad[places], moments, age, (self.beta1, self.beta2), self.eps)
        delta[places] = inner.mul_(self.scale)
        return delta, {"m": new_moments["m"], "v": new_moments["v"], "age": age, "refresh": refresh}

    def _step_free(self, rest: Tensor) -> Tensor:
        """Return the step of what holds no state, in memory of its own."""
        if self.free == "none":
            return rest.new_zeros(rest.shape)
        return (rest.sign() if self.free == "sign" else rest.clone()).mul_(self.free_scale)

    def _carry_entries(self, state: FrugalState, shard: ShardInfo, places: Tensor) -> AgedMoments:
        """Return the moments that go on when other entries are selected.

        With ``project``, entries that stay selected keep theirs and others begin at 0. With ``keep``, the numbers stay
        in their order, if the selections are equally large.
        """
        if self.carry == "reset":
            return {}
        import torch

        before = select_entries(shard, self.projection, self.density, state["refresh"], places.device)
        if self.carry == "keep" and before.numel() == places.numel():
            return state
        carried: AgedMoments = {"age": state["age"]}
        for key in ("m", "v"):
            dense = torch.zeros(shard.numel, device=places.device)
            dense[before] = state[key]  # type: ignore[literal-required]
            carried[key] = dense[places]  # type: ignore[literal-required]
        return carried

    def slice_state(self, state: FrugalState, whole: ShardInfo, shard: ShardInfo) -> FrugalState:
        """Cut the moments to the selected entries that are in the shard; they follow each other as the entries do."""
        if self.placement == MATRIX or "m" not in state:
            return state
        places = select_entries(whole, self.projection, self.density, state["refresh"], state["m"].device)
        inside = (places >= shard.start) & (places < shard.start + shard.numel)
        return {**state, "m": state["m"][inside], "v": state["v"][inside]}
