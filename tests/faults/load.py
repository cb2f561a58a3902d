"""A coordinator under load in a process of its own, so that its memory can be measured.

python -m tests.faults.load FOLDER '{"sites": 1000, "rounds": 50, "width": 64, ...}': prints JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from fedcompress.adapters import Adapter, Template, adapter_digest, load_adapter, save_template, seeded_init
from fedcompress.config import RunConfig
from fedcompress.objective import Classification
from server.coordinator import Coordinator
from tests.faults.simulated import SimulatedSites
from tests.support import lora_layout
from tests.unit.server.memory import CONFIG


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(folder: Path, sites: int, rounds: int, width: int, modules: int, drop: float, **config: Any) -> dict[str, Any]:
    """Seconds, memory and files of a run."""
    layout, initial = lora_layout(modules, width=width), folder / "initial"
    start = Adapter(config=CONFIG, layout=layout, tensors=seeded_init(layout, 3))
    save_template(initial, Template(adapter=start, objective=Classification(labels=("a", "b"))), {})
    layout = load_adapter(initial).layout  # in the order of the file
    del start
    fields = {"run": "run", "state_dir": str(folder / "state"), "initial_adapter": str(initial), "seed": 3}
    fields |= {"rounds": rounds, "min_sites": sites, "rule": "mean", "require_signatures": False}
    threshold = int(drop * 1000)
    transport = SimulatedSites(
        sites, layout, adapter_digest(CONFIG), lambda node, round_: (node * 7919 + round_ * 104729) % 1000 < threshold
    )
    seen: list[tuple[int, int, int]] = []  # round, resident bytes, open files
    merged: list[int] = []

    def emit(event: dict[str, Any]) -> None:
        if event["event"] == "round":
            merged.append(event["merged"])
            seen.append((event["round"], resident(), len(os.listdir("/proc/self/fd"))))

    before, began = resident(), time.monotonic()
    coordinator = Coordinator(RunConfig(**{**fields, **config}), transport, emit, transport.clock)
    coordinator.run()
    return {
        "seconds": time.monotonic() - began,
        "adapter": 4 * layout.numel,
        "before": before,
        "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "merged": merged,
        "seen": seen,
    }


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), **json.loads(sys.argv[2]))))
