"""The exact low-rank merge: 100 sites of rank 16 at 4096 x 4096, and how it grows with sites and rank."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import curves, row
from fedcompress.merging.lowrank import Term, spectrum

SIDE = 4096
SITES = 100
RANK = 16
GROWTH_SIDE = 1024
GROWTH_SITES = (10, 30, 100, 300, 1000)
GROWTH_RANKS = (4, 16, 64)


def terms(sites: int, rank: int, side: int) -> list[Term]:
    """Random factors, float32."""
    draw = np.random.default_rng(0)
    return [
        Term(
            1 / sites,
            draw.standard_normal((side, rank), np.float32),
            draw.standard_normal((rank, side), np.float32),
        )
        for _ in range(sites)
    ]


def measured(sites: int, rank: int, side: int) -> tuple[float, float]:
    """Seconds, and peak memory in MiB beyond the factors."""
    given = terms(sites, rank, side)
    tracemalloc.start()
    started = time.perf_counter()
    spectrum(given, (side, side)).truncated(rank)
    seconds, peak = time.perf_counter() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return seconds, peak / (1 << 20)


def rows(out: Path) -> list[dict[str, Any]]:
    """Seconds and memory."""
    seconds, peak = measured(SITES, RANK, SIDE)
    found = [row(f"{SITES} sites x rank {RANK}, {SIDE} x {SIDE}", seconds, "s", note=f"peak {peak:.0f} MiB")]
    points: dict[int, list[float]] = {}
    for rank in GROWTH_RANKS:
        for sites in GROWTH_SITES:
            seconds, peak = measured(sites, rank, GROWTH_SIDE)
            points.setdefault(rank, []).append(seconds)
            title = f"{sites} sites x rank {rank}, {GROWTH_SIDE} x {GROWTH_SIDE}"
            found.append(row(title, seconds, "s", note=f"peak {peak:.0f} MiB"))
    lines = {f"rank {rank}": (GROWTH_SITES, seconds) for rank, seconds in points.items()}
    title = f"exact merge of one {GROWTH_SIDE} x {GROWTH_SIDE} module, two cores"
    curves(lines, out / "growth.png", across="sites", up="seconds", title=title)
    return found
