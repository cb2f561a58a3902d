"""Quality against density, with and without error feedback: the table that picks the default."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.codec.runs import Cell, run
from benchmarks.common import row

SEEDS = (0, 1, 2)
DENSITIES = (0.2, 0.05, 0.01, 0.003, 0.001)
ROUNDS = {"M": 8, "L": 10}


def rows(out: Path) -> list[dict[str, Any]]:
    """Sparse ternary both ways at one density; the last metric of three seeds."""
    found = []
    for name, rounds in ROUNDS.items():
        plain = [run(Cell(setting=name, rounds=rounds, up="none", down="none", seed=s), out).metrics[-1] for s in SEEDS]
        found.append(row(f"{name}: uncompressed", mean(plain), "", spread=plain))
        for density in DENSITIES:
            code = f"topk(density={density})|ternary"
            for feedback in (1.0, 0.0):
                done = [
                    run(Cell(setting=name, rounds=rounds, up=code, down=code, seed=s, feedback=feedback), out)
                    for s in SEEDS
                ]
                ends = [d.metrics[-1] for d in done]
                note = f"up {done[0].up_ratio:.0f}x, down {done[0].down_ratio:.0f}x, deviation {stdev(ends):.4f}"
                title = f"{name}: density {density:g}, feedback {'on' if feedback else 'off'}"
                found.append(row(title, mean(ends), "", spread=ends, note=note))
    return found
