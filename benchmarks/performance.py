"""Where the time of a demo goes, and how much memory it takes.

    python -m benchmarks.performance [--out DIR] [--json]

Runs the demo once, unless DIR has a result.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import row, show
from fedcompress.demo.run import DemoOptions, run_demo

MAX_SECONDS = 180.0
MAX_BYTES = 1.5e9
PARTS = ("seconds_load", "seconds_evaluate", "seconds_train")


def rows_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Phases of the command; then the parts of a round, for its slowest site."""
    wall, peak = result["wall_seconds"], result["peak_memory_bytes"]
    rows = [
        row("wall", wall, "s", target=f"<= {MAX_SECONDS:.0f}", **{"pass": wall <= MAX_SECONDS}),
        row("largest process", peak / 1e9, "GB", target="<= 1.5", **{"pass": peak <= MAX_BYTES}),
    ]
    rows += [row(f"phase: {name}", seconds, "s") for name, seconds in result["phase_seconds"].items()]
    slowest: dict[str, list[float]] = {name: [] for name in (*PARTS, "flower and codec")}
    first_load, later_load = [], []
    for entry in result["rounds"]:
        metrics = [m["metrics"] for m in result["site_metrics"] if m["round"] == entry["round"]]
        last = max(metrics, key=lambda m: sum(m.get(part, 0.0) for part in PARTS))
        for part in PARTS:
            slowest[part].append(last[part])
        slowest["flower and codec"].append(entry["seconds"] - sum(last[part] for part in PARTS))
        (first_load if entry["round"] == 1 else later_load).extend(m["seconds_load"] for m in metrics)
    rows += [row(f"round, slowest site: {name}", mean(values), "s", spread=values) for name, values in slowest.items()]
    rows.append(row("model load, round 1, slowest site", max(first_load), "s"))
    later = max(later_load, default=0.0)
    rows.append(row("model load, later rounds, slowest site", later, "s", target="<= 0.05", **{"pass": later <= 0.05}))
    return rows


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/performance"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    stored = args.out / "result.json"
    if stored.is_file():
        result = json.loads(stored.read_text())
    else:
        result = run_demo(DemoOptions(out=args.out), lambda event: None)
    show(rows_of(result), args.json)


if __name__ == "__main__":
    main()
