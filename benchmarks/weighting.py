"""How much should a site count, and what does compression cost, where sites differ in size and class?

    python -m benchmarks.weighting [--splits domains,random,banking] [--seeds 3] [--out DIR] [--json]
    python -m benchmarks.weighting --report docs/results.md

Three sites, 18 classes, six of them at one small site alone; all make 40 steps of 16 a round, five rounds. Runs that
have a result in DIR are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import row, show, write_between
from benchmarks.federation import federate
from benchmarks.settings.unequal import SPLITS, unequal

ROUNDS = 5
STEPS = 40
BATCH = 16
GAP = 0.01  # between compressed and not, at most
DEFAULT = ("lora-transform", "lora-transform-down")
PLAIN = ("none", "none")
# name of a run: codecs up and down, weights by rows or by what was processed, and whether the small site is alone
RUNS: dict[str, tuple[tuple[str, str], str, bool]] = {
    "examples": (DEFAULT, "examples", False),
    "processed": (DEFAULT, "processed", False),
    "processed, codec none": (PLAIN, "processed", False),
    "small site alone": (PLAIN, "examples", True),
}


def run(split: str, name: str, seed: int) -> dict[str, Any]:
    """Make one run and return its accuracies and bytes."""
    (up, down), weighting, is_alone = RUNS[name]
    setting, by_site = unequal(split, site=2 if is_alone else None)
    weights = [min(n, STEPS * BATCH) for n in setting.examples] if weighting == "processed" else setting.examples
    done = federate(setting, rounds=ROUNDS, up=up, down=down, seed=seed, weights=weights, every=ROUNDS)
    return {
        "split": split,
        "run": name,
        "seed": seed,
        "accuracy": done.metrics[-1],
        "sites": by_site[-1],
        "examples": setting.examples,
        "up_bytes": done.up_bytes,
        "down_bytes": done.down_bytes,
    }


def report(found: Sequence[dict[str, Any]]) -> str:
    """Write the table: accuracy of all and of the small site, mean of the seeds ± half the range."""
    splits = [s for s in SPLITS if any(r["split"] == s for r in found)]
    lines = [
        "| weighting | " + " | ".join(f"{s}: all | {s}: small site" for s in splits) + " |",
        "|---" * (1 + 2 * len(splits)) + "|",
    ]
    for name in RUNS:
        cells = []
        for split in splits:
            some = [r for r in found if r["split"] == split and r["run"] == name]
            cells += ["" if name == "small site alone" else _spread([r["accuracy"] for r in some])]
            cells += [_spread([r["sites"][-1] for r in some])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{sum(values) / len(values):.3f} ± {(max(values) - min(values)) / 2:.3f}"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", default=",".join(SPLITS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/weighting"))
    parser.add_argument("--report", type=Path, help="write the table between the marks of this file")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in range(args.seeds):
        for split in args.splits.split(","):
            for name in RUNS:
                path = args.out / f"{split}-{name.replace(', ', '-').replace(' ', '-')}-{seed}.json"
                if not path.exists():
                    print(f"{split}, {name}, seed {seed} ...", file=sys.stderr)
                    path.write_text(json.dumps(run(split, name, seed)))
                found.append(json.loads(path.read_text()))
    if args.report:
        write_between(args.report, "weighting", report(found))
    rows = [
        row(f"{r['split']}, {r['run']}, seed {r['seed']}", r["accuracy"], "", note=f"sites {r['sites']}") for r in found
    ]
    ends = {(r["split"], r["run"], r["seed"]): r["accuracy"] for r in found}
    for (split, name, seed), accuracy in ends.items():
        if name == "processed":
            gap = ends[split, "processed, codec none", seed] - accuracy
            rows.append(row(f"{split}, gap to none, seed {seed}", gap, "", target=f"<= {GAP}", **{"pass": gap <= GAP}))
    show(rows, args.json)


if __name__ == "__main__":
    main()
