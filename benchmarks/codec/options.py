"""What is not the default, in training: residuals stored in fewer bits, and budgets that change with the round."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.codec.runs import Cell, run
from benchmarks.common import row

SEEDS = (0, 1, 2)
SETTINGS = {"L": (10, 0.28, 0.5, 1)}  # rounds, bits up and down, weight of a head
STORES = ("none", "bf16", "int8")
FIRST = {"falling": 1.6, "rising": 0.4}  # budget of the first round, over the mean


def schedule(rounds: int, bits: float, head: int, first: float) -> tuple[str, ...]:
    """Codecs of all rounds: budgets on a straight line that have the mean ``bits``."""
    shares = [first + (1 - first) * 2 * i / (rounds - 1) for i in range(rounds)]
    return tuple(f"transform(budget={bits * share:.4f},head={head})" for share in shares)


def rows(out: Path) -> list[dict[str, Any]]:
    """The last metric of three seeds for each store and each schedule."""
    found = []
    for name, (rounds, up, down, head) in SETTINGS.items():
        for store in STORES:
            codes = (f"transform(budget={bits},head={head})" for bits in (up, down))
            found.append(_row(f"{name}: residuals in {store}", out, name, rounds, *codes, store=store))
        for shape, first in FIRST.items():
            codes = (schedule(rounds, bits, head, first) for bits in (up, down))
            found.append(_row(f"{name}: {shape} budget", out, name, rounds, *codes))
    return found


def _row(title: str, out: Path, name: str, rounds: int, up: Any, down: Any, store: str = "none") -> dict[str, Any]:
    cells = [Cell(setting=name, rounds=rounds, up=up, down=down, seed=s, store=store) for s in SEEDS]
    done = [run(cell, out) for cell in cells]
    ends = [d.metrics[-1] for d in done]
    note = f"up {mean(d.up_ratio for d in done):.1f}x, down {mean(d.down_ratio for d in done):.1f}x"
    return row(title, mean(ends), "", spread=ends, note=note)
