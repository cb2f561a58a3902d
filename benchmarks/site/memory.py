"""Host memory of a site's worker and ranks beside that of plain PEFT and Trainer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import row
from benchmarks.site.place import Place, peak_of

STEPS = 6


def rows(out: Path) -> list[dict[str, Any]]:
    """Peaks of the proportional set sizes of all processes, one rank, the same model and batches."""
    place = Place(out / "memory")
    command = [sys.executable, "-m", "benchmarks.site.plain", str(place.file), str(STEPS), place.dtype]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    alone = psutil.Process(process.pid)
    with peak_of(lambda: [alone]) as plain:
        process.wait()
    assert process.returncode == 0

    def worker() -> list[psutil.Process]:
        found = [c for c in psutil.Process(os.getpid()).children(recursive=True) if "clients." in " ".join(c.cmdline())]
        return found

    try:
        with peak_of(worker) as ours:
            for number in (1, 2):
                place.train(place.task(number, STEPS))
    finally:
        place.stop()
    ratio = ours["peak"] / plain["peak"]
    note = f"worker and rank {ours['peak'] / 2**20:.0f} MiB, plain PEFT and Trainer {plain['peak'] / 2**20:.0f} MiB"
    return [row("host memory over plain Trainer's", ratio, "x", target="<= 1.3", **{"pass": ratio <= 1.3}, note=note)]
