"""Seconds and memory of every rule on 8 updates of 10M entries, beside peft and mergekit on the same tensors.

mergekit's requirements do not fit ours: ``MERGEKIT_PYTHON`` names an interpreter that has it, if any.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.common import row
from fedcompress.merging import RULES, InMemoryUpdates, Merger, UpdateFiles, parse_rule
from fedcompress.types import Layout, Tensors, TensorSpec, zeros

SITES = 8
TENSORS = 8
SHAPE = (1000, 1250)
REPEATS = 3
MIB = 1 << 20
LAYOUT = Layout(tuple(TensorSpec(name=f"t{i}", shape=SHAPE) for i in range(TENSORS)))
ONE_UPDATE = 4 * LAYOUT.numel
STACK = 4 * SITES * LAYOUT.tensors[0].numel
LINEAR = ("mean", "task-arithmetic", "wise-ft", "fedit")
FASTER = {("peft", "ties"): 5.0}  # others must not be slower


def update(site: int) -> Tensors:
    """Values of one site."""
    generator = np.random.default_rng(site)
    return {t.name: generator.standard_normal(t.shape, dtype=np.float32) for t in LAYOUT.tensors}


def rows(_: Path) -> list[dict[str, Any]]:
    """Time in memory, peak memory from files."""
    updates = [update(site) for site in range(SITES)]
    base, held = zeros(LAYOUT), InMemoryUpdates(LAYOUT, updates)
    others = {"peft": {name: seconds(run) for name, run in _peft(updates).items()}, "mergekit": _mergekit()}
    found = [row(f"{tool}: {n}", value, "s") for tool, times in others.items() for n, value in times.items()]
    for name in (n for n, r in RULES.items() if r.kind == "elementwise"):
        merger = Merger(rule=parse_rule(name), layout=LAYOUT)
        ours = seconds(lambda m=merger: m.merge(base, [1.0] * SITES, held))
        found.append(row(f"{name}", ours, "s"))
        for tool, times in others.items():
            if name in times:
                least, ratio = FASTER.get((tool, name), 1.0), times[name] / ours
                title = f"{name}: faster than {tool}"
                found.append(row(title, ratio, "x", target=f">= {least:g}", **{"pass": ratio >= least}))
    return found + _memory()


def seconds(run: Callable[[], Any]) -> float:
    """Median of some repeats."""
    out = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        out.append(time.perf_counter() - started)
    return median(out)


def _peft(updates: list[Tensors]) -> dict[str, Callable[[], Any]]:
    """Peft's functions for the rules that both have, tensor by tensor, as peft calls them."""
    import torch
    from peft.utils import merge_utils

    weights = torch.full((SITES,), 1 / SITES)
    tensors = [[torch.from_numpy(u[t.name]) for u in updates] for t in LAYOUT.tensors]

    def each(function: Any, *args: Any) -> Callable[[], Any]:
        return lambda: [function(stack, weights, *args) for stack in tensors]

    return {
        "mean": each(merge_utils.task_arithmetic),
        "ties": each(merge_utils.ties, 0.2),
        "dare": each(merge_utils.dare_linear, 0.2),
        "dare-ties": each(merge_utils.dare_ties, 0.2),
        "magnitude-prune": each(merge_utils.magnitude_prune, 0.2),
    }


def _mergekit() -> dict[str, float]:
    """Seconds of mergekit's steps, if there is an interpreter for them."""
    python = os.environ.get("MERGEKIT_PYTHON")
    if not python:
        return {}
    script = Path(__file__).with_name("with_mergekit.py")
    done = subprocess.run([python, str(script)], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _memory() -> list[dict[str, Any]]:
    """Growth of the largest resident size while a process merges files, each rule in a process of its own."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        spool = UpdateFiles(Path(folder), LAYOUT, [str(i) for i in range(SITES)])
        for site in range(SITES):
            spool.add(str(site), update(site))
        for name in (n for n, r in RULES.items() if r.kind == "elementwise"):
            command = [sys.executable, "-m", "benchmarks.merge.speed", folder, name]
            grown = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            limit = (2 * ONE_UPDATE if name in LINEAR else 2 * STACK) + 64 * MIB
            target = f"<= {limit / MIB:.0f}"
            found.append(row(f"{name}: memory", grown / MIB, "MiB", target=target, **{"pass": grown <= limit}))
    return found


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"/proc/self/status: no {key}")


def merge_files(folder: str, name: str) -> int:
    """Bytes that the process grew by beyond what it had, with the published state, before."""
    merger = Merger(rule=parse_rule(name), layout=LAYOUT)
    base = {n: v + np.float32(0) for n, v in zeros(LAYOUT).items()}
    spool = UpdateFiles(Path(folder), LAYOUT, [str(i) for i in range(SITES)])
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident size starts again
    merger.merge(base, [1.0] * SITES, spool)
    return _status("VmHWM") - before


if __name__ == "__main__":
    print(merge_files(sys.argv[1], sys.argv[2]))
