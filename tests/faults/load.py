"""A coordinator under load in a process of its own, so that its memory can be measured.

python -m tests.faults.load prepare FOLDER '{"width": 64, "modules": 2, "codec": "ternary"}'
python -m tests.faults.load run FOLDER '{"sites": 1000, "rounds": 50, ...}': prints JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from fedcompress.adapters import Adapter, Template, adapter_digest, load_adapter, save_template, seeded_init
from fedcompress.config.objective import Classification
from fedcompress.config.run_config import RunConfig
from fedcompress.types import Layout
from server.coordinator import Coordinator
from tests.faults.simulated import SimulatedSites, record_steps
from tests.support import lora_layout
from tests.unit.server.memory import CONFIG


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def most_resident() -> int:
    """The most that it was; ``getrusage`` would include the process that this one was forked from."""
    with open("/proc/self/status", encoding="ascii") as stream:
        return next(1024 * int(line.split()[1]) for line in stream if line.startswith("VmHWM:"))


def prepare(folder: Path, width: int, modules: int, codec: str) -> None:
    """The initial adapter, and the steps that sites will send."""
    layout, initial = lora_layout(modules, width=width), folder / "initial"
    start = Adapter(config=CONFIG, layout=layout, tensors=seeded_init(layout, 3))
    save_template(initial, Template(adapter=start, objective=Classification(labels=("a", "b"))), {})
    layout = load_adapter(initial).layout  # in the order of the file
    (folder / "layout.json").write_text(layout.to_json())
    record_steps(folder / "steps", layout, codec)


def run(folder: Path, sites: int, rounds: int, drop: float, **config: Any) -> dict[str, Any]:
    """Seconds, memory and files of a run."""
    initial, layout = folder / "initial", Layout.from_json((folder / "layout.json").read_text())
    fields = {"run": "run", "state_dir": str(folder / "state"), "initial_adapter": str(initial), "seed": 3}
    fields |= {"rounds": rounds, "min_sites": sites, "rule": "mean", "require_signatures": False}
    fields |= {"quorum": 1, "min_cohort": 1}
    threshold = int(drop * 1000)
    transport = SimulatedSites(
        sites,
        layout,
        adapter_digest(CONFIG),
        folder / "steps",
        lambda node, round_: (node * 7919 + round_ * 104729) % 1000 < threshold,
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
        "peak": most_resident(),
        "merged": merged,
        "seen": seen,
    }


if __name__ == "__main__":
    what, where, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    print(json.dumps(run(where, **settings) if what == "run" else prepare(where, **settings)))
