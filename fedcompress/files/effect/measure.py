"""Measures how much of an adapter's effect its encoding captures: the error of the change, unit by unit."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedcompress.adapters.folder import from_float32, to_float32
from fedcompress.adapters.safetensors_io import TensorSource
from fedcompress.chunks import TensorSlice, slice_rows
from fedcompress.files.effect.balance import Floats, split_experts
from fedcompress.files.effect.units import Effects, Unit
from fedcompress.merging.lowrank import Term, inner, norm
from fedcompress.types import Array, Tensors

BLOCK = 1 << 20  # entries of a change that are computed at a time


def measure_unit(unit: Unit, values: Mapping[str, Array], decoded: Mapping[str, Array]) -> tuple[float, float]:
    """Compute the squared norm of a unit's change, and that of the error of what was decoded.

    Args:
        unit: which tensors make the change, and how.
        values: the tensors before, float32 by name.
        decoded: the tensors after.

    Returns:
        Both in float64; Frobenius norms, scaled as in the model where that is known.
    """
    if not unit.is_product:
        name = unit.legs[0][0]
        energy = float(np.square(values[name].astype(np.float64) - unit.offset).sum())
        lost = float(np.square(values[name].astype(np.float64) - decoded[name]).sum())
    elif unit.entrywise:
        energy, lost = _measure_entrywise(unit, values, decoded)
    elif len(unit.legs) == 1:
        energy, lost = _measure_pair(unit, values, decoded)
    else:
        energy, lost = _measure_outer(unit, values, decoded)
    if all(np.array_equal(values[n], decoded[n]) for n in unit.names):
        lost = 0.0  # where the sums above have rounding errors
    return energy * unit.scaling**2, lost * unit.scaling**2


def _split(unit: Unit, tensors: Mapping[str, Array]) -> list[tuple[Floats, Floats]]:
    left, right = unit.legs[0]
    scaled = tensors[right]
    if unit.diagonal:
        scaled = scaled * tensors[unit.diagonal].reshape(-1, *[1] * (scaled.ndim - 1))
    return split_experts(tensors[left], scaled, unit.experts)


def _measure_pair(unit: Unit, values: Mapping[str, Array], decoded: Mapping[str, Array]) -> tuple[float, float]:
    energy = 0.0
    lost = 0.0
    for (b, a), (b_after, a_after) in zip(_split(unit, values), _split(unit, decoded), strict=True):
        shape = b.shape[0], a.shape[1]
        energy += norm([Term(1.0, b, a)], shape) ** 2
        lost += norm([Term(1.0, b, a), Term(-1.0, b_after, a_after)], shape) ** 2
    return energy, lost


def _measure_outer(unit: Unit, values: Mapping[str, Array], decoded: Mapping[str, Array]) -> tuple[float, float]:
    """Measure Kronecker and outer products, whose inner products are the products of those of their legs."""
    before = 1.0
    after = 1.0
    both = 1.0
    for leg in unit.legs:
        x, y = _as_term(leg, values), _as_term(leg, decoded)
        before *= inner([x], [x])
        after *= inner([y], [y])
        both *= inner([x], [y])
    return before, max(before + after - 2 * both, 0.0)


def _as_term(leg: tuple[str, ...], tensors: Mapping[str, Array]) -> Term:
    left = tensors[leg[0]].astype(np.float64)
    if len(leg) == 1:
        return Term(1.0, left.reshape(-1, 1), np.ones((1, 1)))
    return Term(1.0, left.reshape(left.shape[0], -1), tensors[leg[1]].reshape(tensors[leg[1]].shape[0], -1))


def _measure_entrywise(unit: Unit, values: Mapping[str, Array], decoded: Mapping[str, Array]) -> tuple[float, float]:
    """Measure an entrywise product, some rows of the change at a time."""
    first, second = unit.legs
    rows = values[first[0]].shape[0]
    step = max(BLOCK // max(values[first[1]].shape[1], 1), 1)
    energy = 0.0
    lost = 0.0
    for start in range(0, rows, step):
        blocks = []
        for tensors in (values, decoded):
            left, right = (
                tensors[leg[0]][start : start + step].astype(np.float64) @ tensors[leg[1]] for leg in (first, second)
            )
            blocks.append(left * right)
        energy += float(np.square(blocks[0]).sum())
        lost += float(np.square(blocks[0] - blocks[1]).sum())
    return energy, lost


class EffectDistortion:
    """Sums up, unit by unit, the energy of the changes that an adapter makes, and that of their errors.

    Args:
        effects: the units of the adapter.
        source: has the tensors as they were.
    """

    def __init__(self, effects: Effects, source: TensorSource) -> None:
        self._effects = effects
        self._source = source
        self._energy: dict[str, float] = defaultdict(float)  # by module
        self._lost: dict[str, float] = defaultdict(float)
        self._waiting: Tensors = {}  # decoded tensors of units that are not complete
        self._missing: dict[str, int] = {}  # entries that each of them still lacks

    def add(self, slices: list[TensorSlice], decoded: Mapping[str, Array]) -> None:
        """Add what a decoder has of a part; a unit is measured when all of its tensors are there.

        Args:
            slices: what the part holds.
            decoded: the values of the adapter that is restored, float32 by name, of the shapes of the slices.
        """
        for piece in slices:
            name = piece.spec.name
            if name not in self._effects.units:
                continue
            rounded = to_float32(from_float32(decoded[name], piece.spec.dtype).tobytes(), piece.spec.dtype)
            whole = self._waiting.setdefault(name, np.empty(piece.whole.shape, np.float32))
            whole[slice_rows(piece)] = rounded.reshape(piece.spec.shape)
            self._missing[name] = self._missing.get(name, piece.whole.numel) - piece.spec.numel
            unit = self._effects.units[name]
            if all(self._missing.get(n, 1) == 0 for n in unit.names):
                self._measure(unit)

    def _measure(self, unit: Unit) -> None:
        specs = self._source.layout.by_name
        values = {n: self._source.read(TensorSlice(spec=specs[n])) for n in unit.names}
        decoded = {n: self._waiting.pop(n) for n in unit.names}
        energy, lost = measure_unit(unit, values, decoded)
        self._energy[unit.module] += energy
        self._lost[unit.module] += lost

    @property
    def captured(self) -> float:
        """Return the captured share of the effect's energy; 1 if there is nothing that is judged."""
        return 1 - _share(sum(self._lost.values()), sum(self._energy.values()))

    def summarize(self, worst: int = 5) -> dict[str, Any]:
        """Summarize what is captured, the relative error, and the ``worst`` modules by their relative error."""
        total = sum(self._lost.values())
        errors = {m: math.sqrt(_share(lost, self._energy[m])) for m, lost in self._lost.items()}
        largest = sorted(errors, key=lambda m: (-errors[m], m))[:worst]
        return {
            "captured": self.captured,
            "error": math.sqrt(_share(total, sum(self._energy.values()))),
            "worst_modules": [
                {
                    "module": module,
                    "error": errors[module],
                    "share_of_loss": self._lost[module] / total if total else 0.0,
                }
                for module in largest
            ],
        }


def _share(lost: float, energy: float) -> float:
    return lost / energy if energy else float(lost > 0)
