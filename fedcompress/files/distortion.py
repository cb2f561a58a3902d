"""How much of an update its encoding captures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedcompress.chunks import TensorSlice
from fedcompress.types import Array

CHUNK = 1 << 20  # entries that are widened to float64 together


def energy_of(values: Array) -> float:
    """Sum of squares, in float64."""
    flat = values.reshape(-1)
    return sum(float(np.square(flat[i : i + CHUNK], dtype=np.float64).sum()) for i in range(0, flat.size, CHUNK))


class Distortion:
    """Energies of values and of what was lost of them, by tensor."""

    def __init__(self) -> None:
        self._energy: dict[str, float] = defaultdict(float)
        self._lost: dict[str, float] = defaultdict(float)
        self._group: dict[str, str] = {}

    def add(self, pieces: list[TensorSlice], values: Mapping[str, Array], decoded: Mapping[str, Array]) -> None:
        """Take in a part."""
        for spec in (p.spec for p in pieces):
            self._group[spec.name] = spec.group
            self._energy[spec.name] += energy_of(values[spec.name])
            self._lost[spec.name] += energy_of(values[spec.name] - decoded[spec.name])

    @property
    def captured(self) -> float:
        """1 - |x - C(x)|^2 / |x|^2 over everything; 1 if there is nothing to capture."""
        return _captured(sum(self._energy.values()), sum(self._lost.values()))

    def facts(self, worst: int = 5) -> dict[str, Any]:
        """Captured energy overall and by group, and the tensors that lose the largest share of the whole."""
        energy: dict[str, float] = defaultdict(float)
        lost: dict[str, float] = defaultdict(float)
        for name, group in self._group.items():
            energy[group] += self._energy[name]
            lost[group] += self._lost[name]
        order = sorted(self._lost, key=lambda name: (-self._lost[name], name))[:worst]
        total = sum(self._lost.values())
        return {
            "captured": self.captured,
            "captured_by_group": {g: _captured(energy[g], lost[g]) for g in energy},
            "worst_tensors": [
                {
                    "tensor": name,
                    "group": self._group[name],
                    "captured": _captured(self._energy[name], self._lost[name]),
                    "share_of_loss": self._lost[name] / total if total else 0.0,
                }
                for name in order
            ],
        }


def _captured(energy: float, lost: float) -> float:
    return 1 - lost / energy if energy else float(lost == 0)
