"""What was tried behind or inside the transform code and left out: the figures that say why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.codec.deltas import Delta, deltas
from benchmarks.common import row
from fedcompress.codecs import CodecSpec, decode_sections, encode_sections
from fedcompress.codecs.matrix_view import MatrixView
from fedcompress.types import Tensors, subtract

BUDGETS = (0.13, 0.27, 0.5)  # bits a parameter
SPARSE = (0.0003, 0.001, 0.003, 0.01, 0.03)  # densities to choose the best from
BASES = 0.07  # share of the bytes that bases take on M and S
Floats = NDArray[np.float64]


def rows(out: Path) -> list[dict[str, Any]]:
    """Shares of the energy that are left; less is better."""
    found = []
    known = {d.name: d for d in deltas(out)}
    for name, delta in known.items():
        found += [_sparse_stage(name, delta, bits) for bits in BUDGETS]
    for before, after in (("S, round 1", "S, round 2"), ("S, round 2", "S, round 3"), ("M, round 1", "M, round 3")):
        found += [_old_bases(known[before], known[after], bits) for bits in BUDGETS]
    return found


def _energy(tensors: Tensors) -> float:
    return sum(float(np.square(v, dtype=np.float64).sum()) for v in tensors.values())


def _sent(delta: Delta, tensors: Tensors, code: str) -> tuple[int, Tensors]:
    """Bytes, and what is left."""
    spec = CodecSpec.parse(code)
    sections = encode_sections(spec, delta.layout, tensors)
    return sum(map(len, sections)), subtract(tensors, decode_sections(spec, delta.layout, sections))


def _sparse_stage(name: str, delta: Delta, bits: float) -> dict[str, Any]:
    """All bits for the transform, against a tenth of them for sparse ternary of what it leaves."""
    whole, allowed = _energy(delta.tensors), bits * delta.layout.numel / 8
    _, rest = _sent(delta, delta.tensors, f"transform(budget={bits},head=1)")
    size, first = _sent(delta, delta.tensors, f"transform(budget={0.9 * bits},head=1)")
    left = _energy(first)
    for density in SPARSE:
        more, second = _sent(delta, first, f"topk(density={density},scope=global)|ternary")
        if size + more <= allowed:
            left = min(left, _energy(second))
    note = f"{_energy(rest) / whole:.4f} without it"
    return row(f"{name}, {bits} bits: left with a sparse stage", left / whole, "", note=note)


def _old_bases(before: Delta, after: Delta, bits: float) -> dict[str, Any]:
    """Reverse water-filling over rows in the basis of an earlier round, sent for nothing, against own bases."""
    own = []
    old = []
    columns = []
    for spec in after.layout.tensors:
        if spec.group in ("lora_a", "lora_b"):
            grid = MatrixView.of(spec.shape)
            now, then = (grid.matrix(d.tensors[spec.name]).astype(np.float64) for d in (after, before))
            columns.append(grid.columns)
            own.append(np.square(np.linalg.eigh(now @ now.T)[1].T @ now).mean(1))
            old.append(np.square(np.linalg.eigh(then @ then.T)[1].T @ now).mean(1))
    note = f"{_left(own, columns, (1 - BASES) * bits):.4f} with its own, paid for"
    return row(f"{after.name}, {bits} bits: left with bases of {before.name}", _left(old, columns, bits), "", note=note)


def _left(variances: list[Floats], columns: list[int], bits: float) -> float:
    """Share of the energy of Gaussian rows beyond so many bits an entry."""
    energy = np.concatenate(variances)
    count = np.repeat(columns, [v.size for v in variances])
    low, high = 1e-30, float(energy.max())
    for _ in range(100):
        level = np.sqrt(low * high)
        used = (np.maximum(np.log2(energy / level), 0) / 2 * count).sum()
        low, high = (level, high) if used > bits * count.sum() else (low, level)
    return float((np.minimum(energy, level) * count).sum() / (energy * count).sum())
