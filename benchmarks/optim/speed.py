"""Times a step of 135M parameters by each optimizer, and a refresh of one basis."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import row
from benchmarks.optim.models import set_random_gradients, wide_llama
from fedcompress.optim import build_optimizer
from fedcompress.optim.state.bases import compute_basis

REPEATS = 7  # turns that are timed, after one that makes the states
LONG = 10**9  # steps between refreshes, so that none is timed


def rows(out: Path) -> list[dict[str, Any]]:
    """Return the rows of steps, then those of refreshes."""
    return _steps() + _refresh()


def _steps() -> list[dict[str, Any]]:
    """Time steps in turns, so that all optimizers see the same machine.

    A row has the median of the ratios to the baseline of the same turn.
    """
    import torch
    from bitsandbytes.optim import AdamW8bit

    model = wide_llama(30)
    set_random_gradients(model)
    builders: dict[str, Callable[[], Any]] = {
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
    optimizers = {name: build() for name, build in builders.items()}
    seconds_by_name: dict[str, list[float]] = {name: [] for name in builders}
    for turn in range(REPEATS + 1):
        for name, optimizer in optimizers.items():
            seconds = _time_call(optimizer.step)
            if turn:  # the first turn makes the states
                seconds_by_name[name].append(seconds)
    for name in ("galore", "galore(products=bf16)"):
        optimizer = optimizers[name]
        optimizer.new_round(1, state="keep")  # every matrix refreshes at once
        refresh = _time_call(optimizer.step) - median(seconds_by_name[name])
        shared_out = [seconds + refresh / 200 for seconds in seconds_by_name[name]]
        seconds_by_name[f"{name}, refreshes of 200 steps shared out"] = shared_out
    table = []
    for name, base, limit in (
        ("adamw", "torch AdamW", None),
        ("frugal", "torch AdamW", 1.5),
        ("galore, refreshes of 200 steps shared out", "torch AdamW", 1.3),
        ("galore(products=bf16), refreshes of 200 steps shared out", "torch AdamW", 1.3),
        ("adamw8bit", "bitsandbytes AdamW8bit", None),
        ("frugal(state=8bit)", "bitsandbytes AdamW8bit", 1.5),
    ):
        seconds = seconds_by_name[name]
        base_seconds = seconds_by_name[base]
        ratios = [ours / theirs for ours, theirs in zip(seconds, base_seconds, strict=True)]
        value = median(ratios)
        note = f"{median(seconds):.3f} s against {median(base_seconds):.3f} s of {base}"
        target = {"target": f"<= {limit}", "pass": value <= limit} if limit else {}
        table.append(row(f"step of 135M, {name}", value, "x", spread=ratios, note=note, **target))
    return table


def _refresh() -> list[dict[str, Any]]:
    """Time the exact SVD and the other bases at 1024 x 1024, rank 256.

    The spectrum is i^-0.8, and the gradient drifts between refreshes.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(1024, 1024, generator=generator))[0] for _ in range(2))
    values = torch.arange(1, 1025) ** -0.8
    matrix = left * values @ right.T
    turned = torch.linalg.qr(right + 0.002 * torch.randn(1024, 1024, generator=generator))[0]
    later = left * values @ turned.T
    before = compute_basis(matrix, 256, "svd", side="right")

    def energy(basis: Any) -> float:
        return float((later @ basis).square().sum())

    seconds_by_kind: dict[str, list[float]] = {}
    energies: dict[str, float] = {}
    for _ in range(3):
        for kind in ("svd", "randomized", "power", "dct"):
            generator = torch.Generator().manual_seed(1)
            started = time.perf_counter()
            basis = compute_basis(later, 256, kind, side="right", before=before, generator=generator)
            seconds_by_kind.setdefault(kind, []).append(time.perf_counter() - started)
            energies[kind] = energy(basis)
    table = []
    for kind in ("randomized", "power", "dct"):
        faster = median(seconds_by_kind["svd"]) / median(seconds_by_kind[kind])
        share = energies[kind] / energies["svd"]
        note = f"{median(seconds_by_kind[kind]) * 1e3:.0f} ms, {share:.3f} of the energy that the exact one keeps"
        verdict = {"target": ">= 10, 0.95", "pass": faster >= 10 and share >= 0.95} if kind == "power" else {}
        table.append(row(f"refresh at 1024^2, rank 256: svd / {kind}", faster, "x", note=note, **verdict))
    return table


def _time_call(step: Callable[[], Any]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started
