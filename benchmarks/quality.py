"""Does compression cost accuracy? Three seeds of the demo, with and without.

    python -m benchmarks.quality [--out DIR] [--json]

Runs the grid of grids/small.toml; cells that have a result in DIR are kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import row, show
from fedcompress.experiments import Grid, run_grid

GAIN = 0.25
GAP = 0.05
RATIO = 16.0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--grid", type=Path, default=Path(__file__).parent / "grids" / "small.toml")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    def on_cell(number: int, count: int, result: dict[str, Any]) -> None:
        print(f"{number}/{count} {result['options']} {result['accuracy_end']:.4f}", file=sys.stderr)

    results = run_grid(Grid.load(args.grid), args.out, on_cell)
    ends = {(r["options"]["codec"], r["seed"]): r for r in results}
    rows = []
    for (codec, seed), result in ends.items():
        gain = result["accuracy_end"] - result["accuracy_start"]
        rows.append(row(f"accuracy_end {codec} seed {seed}", result["accuracy_end"], "", note=f"gain {gain:.4f}"))
        if codec == "none":
            continue
        rows.append(row(f"gain {codec} seed {seed}", gain, "", target=f">= {GAIN}", **{"pass": gain >= GAIN}))
        plain = ends.get(("none", seed))
        if plain is not None:
            gap = plain["accuracy_end"] - result["accuracy_end"]
            rows.append(row(f"gap to none, seed {seed}", gap, "", target=f"<= {GAP}", **{"pass": gap <= GAP}))
        for way, ratio in result["ratio_vs_bf16"].items():
            name = f"ratio_vs_bf16.{way} {codec} seed {seed}"
            rows.append(row(name, ratio, "x", target=f">= {RATIO:.0f}", **{"pass": ratio >= RATIO}))
        rows.append(row(f"wall_seconds {codec} seed {seed}", result["wall_seconds"], "s"))
    show(rows, args.json)


if __name__ == "__main__":
    main()
