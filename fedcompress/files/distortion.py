"""Measures how much of an update its encoding captures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedcompress.chunks import TensorSlice
from fedcompress.types import Array

CHUNK = 1 << 20  # entries that are widened to float64 at a time


def compute_energy(values: Array) -> float:
    """Compute the sum of squares in float64; the values may have any shape."""
    flat = values.reshape(-1)
    return sum(float(np.square(flat[i : i + CHUNK], dtype=np.float64).sum()) for i in range(0, flat.size, CHUNK))


class Distortion:
    """Sums up, tensor by tensor, the energy (sum of squares) of the values and of their errors."""

    def __init__(self) -> None:
        self._energy: dict[str, float] = defaultdict(float)
        self._lost: dict[str, float] = defaultdict(float)
        self._group: dict[str, str] = {}

    def add(self, slices: list[TensorSlice], values: Mapping[str, Array], decoded: Mapping[str, Array]) -> None:
        """Add the tensors of a part, or some rows of them.

        Args:
            slices: what the part holds.
            values: what was encoded, float32 by name, of the shapes of the slices.
            decoded: what a receiver decodes in their place.
        """
        for spec in (s.spec for s in slices):
            self._group[spec.name] = spec.group
            self._energy[spec.name] += compute_energy(values[spec.name])
            self._lost[spec.name] += compute_energy(values[spec.name] - decoded[spec.name])

    @property
    def captured(self) -> float:
        """Return the captured share of the energy, 1 - |x - C(x)|^2 / |x|^2; 1 if all values and errors are zero."""
        return _captured_share(sum(self._energy.values()), sum(self._lost.values()))

    def summarize(self, worst: int = 5) -> dict[str, Any]:
        """Summarize the captured share overall and by group, with the ``worst`` tensors by energy lost."""
        energy: dict[str, float] = defaultdict(float)
        lost: dict[str, float] = defaultdict(float)
        for name, group in self._group.items():
            energy[group] += self._energy[name]
            lost[group] += self._lost[name]
        largest_losses = sorted(self._lost, key=lambda name: (-self._lost[name], name))[:worst]
        total = sum(self._lost.values())
        return {
            "captured": self.captured,
            "captured_by_group": {g: _captured_share(energy[g], lost[g]) for g in energy},
            "worst_tensors": [
                {
                    "tensor": name,
                    "group": self._group[name],
                    "captured": _captured_share(self._energy[name], self._lost[name]),
                    "share_of_loss": self._lost[name] / total if total else 0.0,
                }
                for name in largest_losses
            ],
        }


def _captured_share(energy: float, lost: float) -> float:
    return 1 - lost / energy if energy else float(lost == 0)
