"""Seconds of a training step by ranks and engines, beside plain Trainer, in one run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import row
from benchmarks.site.place import BATCH, LENGTH, Place, metrics_of

STEPS = 6
CASES = (
    ("one rank, DeepSpeed, ZeRO-0", "zero_stage = 0", 1),
    ("one rank, accelerate", 'kind = "accelerate"', 1),
    ("two ranks, ZeRO-0", "zero_stage = 0", 2),
    ("two ranks, ZeRO-1", "zero_stage = 1", 2),
    ("two ranks, ZeRO-2", "zero_stage = 2", 2),
    ("two ranks, ZeRO-3", "zero_stage = 3", 2),
    ("two ranks, accelerate", 'kind = "accelerate"', 2),
    ("two ranks, FSDP2", 'kind = "accelerate"\nsharding = "fsdp2"', 2),
)


def rows(out: Path) -> list[dict[str, Any]]:
    """Rows a second, and the ratio to plain Trainer with all threads."""
    found = []
    place = Place(out / "throughput")
    command = [sys.executable, "-m", "benchmarks.site.plain", str(place.file), str(STEPS + 1), place.dtype]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    plain = json.loads(done.stdout.splitlines()[-1])["seconds"]
    note = f"{BATCH} rows of at most {LENGTH} tokens a step, LoRA r=16 on SmolLM2-135M in {place.dtype}"
    found.append(row("plain PEFT and Trainer", BATCH / plain, "rows/s", note=note))
    for name, engine, ranks in CASES:
        place = Place(out / f"throughput-{len(found)}", engine=engine, ranks=ranks)
        try:
            for number in (1, 2):
                reply, _ = place.train(place.task(number, STEPS))
            seconds = metrics_of(reply)["seconds_train"] / STEPS
        finally:
            place.stop()
        found.append(row(name, BATCH / seconds, "rows/s", note=f"{plain / seconds:.2f} x plain Trainer"))
    return found
