"""Time of a step of 135M parameters, side by side, and of a refresh."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import row
from benchmarks.optim.models import random_gradients, wide_llama
from fedcompress.optim import build_optimizer
from fedcompress.optim.state.bases import compute_basis

REPEATS = 7
LONG = 10**9  # steps between refreshes, so that none is timed


def rows(out: Path) -> list[dict[str, Any]]:
    """Steps, then refreshes."""
    return _steps() + _refresh()


def _steps() -> list[dict[str, Any]]:
    """In turns, so that all see the same machine; the median of ratios to the baseline of the same turn."""
    import torch
    from bitsandbytes.optim import AdamW8bit

    model = wide_llama(30)
    random_gradients(model)
    made: dict[str, Callable[[], Any]] = {
        "torch AdamW": lambda: torch.optim.AdamW(model.parameters(), lr=1e-6),
        "adamw": lambda: build_optimizer(model, "adamw", lr=1e-6),
        "frugal": lambda: build_optimizer(model, f"frugal(update_gap={LONG})", lr=1e-6),
        "galore": lambda: build_optimizer(model, f"galore(rank=144,update_gap={LONG},basis=power)", lr=1e-6),
        "galore(products=bf16)": lambda: build_optimizer(
            model, f"galore(rank=144,update_gap={LONG},basis=power,products=bf16)", lr=1e-6
        ),
        "bitsandbytes AdamW8bit": lambda: AdamW8bit(model.parameters(), lr=1e-6),
        "adamw8bit": lambda: build_optimizer(model, "adamw8bit", lr=1e-6),
        "frugal(state=8bit)": lambda: build_optimizer(model, f"frugal(update_gap={LONG},state=8bit)", lr=1e-6),
    }
    optimizers = {name: make() for name, make in made.items()}
    taken: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(REPEATS + 1):
        for name, optimizer in optimizers.items():
            seconds = _seconds(optimizer.step)
            if turn:  # the first makes the states
                taken[name].append(seconds)
    for name in ("galore", "galore(products=bf16)"):
        optimizer = optimizers[name]
        optimizer.new_round(1, state="keep")  # every matrix refreshes at once
        refresh = _seconds(optimizer.step) - median(taken[name])
        taken[f"{name}, refreshes of 200 steps shared out"] = [t + refresh / 200 for t in taken[name]]
    found = []
    for name, base, limit in (
        ("adamw", "torch AdamW", None),
        ("frugal", "torch AdamW", 1.5),
        ("galore, refreshes of 200 steps shared out", "torch AdamW", 1.3),
        ("galore(products=bf16), refreshes of 200 steps shared out", "torch AdamW", 1.3),
        ("adamw8bit", "bitsandbytes AdamW8bit", None),
        ("frugal(state=8bit)", "bitsandbytes AdamW8bit", 1.5),
    ):
        ratios = [a / b for a, b in zip(taken[name], taken[base], strict=True)]
        value, note = median(ratios), f"{median(taken[name]):.3f} s against {median(taken[base]):.3f} s of {base}"
        target = {"target": f"<= {limit}", "pass": value <= limit} if limit else {}
        found.append(row(f"step of 135M, {name}", value, "x", spread=ratios, note=note, **target))
    return found


def _refresh() -> list[dict[str, Any]]:
    """Exact SVD against the others at 1024 x 1024, rank 256, on a spectrum i^-0.8 that drifts between refreshes."""
    import torch

    made = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(1024, 1024, generator=made))[0] for _ in range(2))
    values = torch.arange(1, 1025) ** -0.8
    matrix = left * values @ right.T
    turned = torch.linalg.qr(right + 0.002 * torch.randn(1024, 1024, generator=made))[0]
    later = left * values @ turned.T
    before = compute_basis(matrix, 256, "svd", side="right")

    def energy(basis: Any) -> float:
        return float((later @ basis).square().sum())

    taken: dict[str, list[float]] = {}
    kept: dict[str, float] = {}
    for _ in range(3):
        for kind in ("svd", "randomized", "power", "dct"):
            generator = torch.Generator().manual_seed(1)
            started = time.perf_counter()
            basis = compute_basis(later, 256, kind, side="right", before=before, generator=generator)
            taken.setdefault(kind, []).append(time.perf_counter() - started)
            kept[kind] = energy(basis)
    found = []
    for kind in ("randomized", "power", "dct"):
        faster, share = median(taken["svd"]) / median(taken[kind]), kept[kind] / kept["svd"]
        note = f"{median(taken[kind]) * 1e3:.0f} ms, {share:.3f} of the energy that the exact one keeps"
        verdict = {"target": ">= 10, 0.95", "pass": faster >= 10 and share >= 0.95} if kind == "power" else {}
        found.append(row(f"refresh at 1024^2, rank 256: svd / {kind}", faster, "x", note=note, **verdict))
    return found


def _seconds(step: Callable[[], Any]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started
