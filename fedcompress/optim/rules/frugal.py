"""FRUGAL: Adam in a part of each matrix, a rule without state in the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fedcompress.optim.base import (
    ELEMENTWISE,
    MATRIX,
    ShardInfo,
    State,
    check_choice,
    check_matrix,
    check_moments,
    check_positive,
    check_share,
)
from fedcompress.optim.state.adam_moments import adam
from fedcompress.optim.state.bases import BASES, basis_of
from fedcompress.optim.state.projection import CARRIES, carried, larger_side, to_full, to_low
from fedcompress.optim.state.selections import SELECTIONS, selected, selected_numel

FREE = ("sign", "sgd", "none")


@dataclass(frozen=True, kw_only=True)
class Frugal:
    """``scale * Adam(P g) + free_scale * sign(g - P^T P g)``, P drawn anew every ``update_gap`` steps.

    Zmushko et al. 2024 (arXiv:2411.07837, algorithm 1), with the released code's defaults for
    pre-training; fine-tuning there has ``free_scale=0.1``. By ``columns``, ``rows``, ``blocks`` (whole
    matrices in turn) and ``randk`` it runs on any shard; the other projections need whole
    matrices. The released code keeps 16 bytes of indices for each entry of ``randk``; here they are drawn
    again from the seed. Each matrix refreshes at steps of its own, there all at once.

    Args:
        density: share of the entries, or of the smaller side, that holds state.
        projection: what P selects or spans.
        update_gap: steps between refreshes.
        free: what the rest does: ``sign``, ``sgd`` or ``none``.
        free_scale: of the rest.
        scale: of Adam's part.
        carry: what becomes of the moments at a refresh: ``reset`` (the paper), ``keep``, or ``project``
            into the new basis.
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
        """Elementwise unless P is a basis."""
        return ELEMENTWISE if self.projection in SELECTIONS else MATRIX

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Matrices; others too by ``blocks`` and ``randk``."""
        if self.projection not in ("blocks", "randk"):
            check_matrix(self.name, name, shape)

    def rank(self, shape: tuple[int, ...]) -> int:
        """Of a basis."""
        return max(1, round(self.density * min(shape)))

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Two moments for each selected entry or coordinate."""
        if self.placement == ELEMENTWISE:
            numel = selected_numel(shape, self.projection, self.density)
        else:
            numel = self.rank(shape) * max(shape)
        return {"m": numel, "v": numel}

    def other_bytes(self, shape: tuple[int, ...]) -> int:
        """The basis; nothing where entries are selected."""
        return 0 if self.placement == ELEMENTWISE else 4 * self.rank(shape) * min(shape)

    def _free(self, rest: Any) -> Any:
        if self.free == "none":
            return rest.new_zeros(rest.shape)
        return (rest.sign() if self.free == "sign" else rest.clone()).mul_(self.free_scale)

    def update(self, grad: Any, state: State, step: int, part: ShardInfo, weight: Any) -> tuple[Any, State]:
        """One step."""
        if self.projection == "blocks":
            refresh = part.refresh(step - part.before, self.update_gap, staggered=False)
        else:
            refresh = part.refresh(step, self.update_gap)
        if self.placement == ELEMENTWISE:
            return self._by_entries(grad, state, part, refresh)
        side = larger_side(part.shape)
        fresh = state.get("refresh") != refresh
        if fresh:
            before, rank = state.get("basis"), self.rank(part.shape)
            generator = part.generator(refresh)
            basis = basis_of(grad, rank, self.projection, side=side, before=before, generator=generator)
            state = carried(state, before, basis, side, self.carry)
        basis = state["basis"] if not fresh else basis
        low, age = to_low(grad, basis, side), state.get("age", 0) + 1
        delta = self._free(grad - to_full(low, basis, side))
        inner, kept = adam(low, state, age, (self.beta1, self.beta2), self.eps)
        delta += to_full(inner, basis, side).mul_(self.scale)
        return delta, kept | {"basis": basis, "age": age, "refresh": refresh}

    def _by_entries(self, grad: Any, state: State, part: ShardInfo, refresh: int) -> tuple[Any, State]:
        places = selected(part, self.projection, self.density, refresh, grad.device)
        if state.get("refresh") != refresh:
            state = self._moved(state, part, places) if "m" in state else {}
        age = state.get("age", 0) + 1
        delta = self._free(grad)
        inner, kept = adam(grad[places], state, age, (self.beta1, self.beta2), self.eps)
        delta[places] = inner.mul_(self.scale)
        return delta, kept | {"age": age, "refresh": refresh}

    def _moved(self, state: State, part: ShardInfo, places: Any) -> State:
        """What becomes of moments when other entries are selected: entries that stay keep theirs, or nothing does."""
        if self.carry == "reset":
            return {}
        import torch

        old = selected(part, self.projection, self.density, state["refresh"], places.device)
        if self.carry == "keep" and old.numel() == places.numel():
            return state
        moved: State = {"age": state["age"]}
        for key in ("m", "v"):
            dense = torch.zeros(part.numel, device=places.device)
            dense[old] = state[key]
            moved[key] = dense[places]
        return moved

    def slice_state(self, state: State, whole: ShardInfo, part: ShardInfo) -> State:
        """State of a part: its moments follow each other as its entries do."""
        if self.placement == MATRIX or "m" not in state:
            return state
        places = selected(whole, self.projection, self.density, state["refresh"], state["m"].device)
        inside = (places >= part.start) & (places < part.start + part.numel)
        return state | {key: state[key][inside] for key in ("m", "v")}
