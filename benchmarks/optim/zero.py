"""Compares GaLore on SmolLM2-135M under ZeRO on two ranks with one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import row

STEPS = 12
OPTIMIZER = "galore(rank=128,basis=power,update_gap=5)"


def run(stage: int, out: Path) -> dict[str, Any]:
    """Return the losses, seconds and bytes of state of a run, which is cached as JSON; stage -1 is one process."""
    path = out / "zero" / f"stage{stage}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        ranks = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
        options = ["--optimizer", OPTIMIZER, "--stage", str(stage), "--steps", str(STEPS), "--out", str(path)]
        command = [sys.executable, *(ranks if stage >= 0 else []), "-m", "benchmarks.optim.zero_train", *options]
        environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1" if stage >= 0 else "2"}
        subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def rows(out: Path) -> list[dict[str, Any]]:
    """Return the largest difference of a loss for each stage, with the state of rank 0; draw the curves as well."""
    runs = {stage: run(stage, out) for stage in (-1, 1, 2, 3)}
    alone = runs[-1]
    table = []
    for stage in (1, 2, 3):
        off = max(abs(a - b) for a, b in zip(runs[stage]["losses"], alone["losses"], strict=True))
        state = f"{runs[stage]['state'] / 1e6:.0f} MB of state on rank 0, {alone['state'] / 1e6:.0f} MB in one process"
        note = f"{alone['losses'][0]:.3f} to {runs[stage]['losses'][-1]:.3f}; {state}"
        table.append(row(f"SmolLM2, GaLore, ZeRO-{stage}: loss off by", off, "nats", note=note))
    _picture(runs, out / "zero.png")
    return table


def _picture(runs: dict[int, dict[str, Any]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for number, (stage, result) in enumerate(runs.items()):
        name = "one process" if stage < 0 else f"ZeRO-{stage}, two ranks"
        steps = range(1, len(result["losses"]) + 1)
        axes.plot(steps, result["losses"], label=name, linewidth=6 - 1.5 * number, alpha=0.7)
    axes.set_xlabel("step")
    axes.set_ylabel("loss of answers, nats a token")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
