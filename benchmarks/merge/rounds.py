"""Each rule as the aggregator of a federation of eight sites that share no class: accuracy after 20 rounds."""

from __future__ import annotations

import hashlib
import json
import sys
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import row
from benchmarks.federation import federate
from benchmarks.settings.base import Setting
from benchmarks.settings.clinc import intents
from fedcompress.merging import RULES

ROUNDS = 20
STEPS = 6
EVAL_ROWS = 1500
EVERY = 5
UP = {"transform": "lora-transform", "ternary 5 %": "topk(density=0.05)|ternary"}
DOWN = "lora-transform-down"
SEEDS = (0, 1, 2)
# Three seeds for those that people would choose; the others have the first.
CANDIDATES = ("mean", "lora-ridge", "clip", "ties", "trimmed-mean")
# With default parameters these are the mean, to rounding.
SAME_AS_MEAN = ("fedit", "multi-krum", "task-arithmetic")
WITH_TERNARY = ("mean", "lora-ridge", "ties", "pcb", "median", "disjoint-mean")


@cache
def _setting() -> Setting:
    return intents(sites=8, steps=STEPS, eval_rows=EVAL_ROWS)


def run(rule: str, up: str, seed: int, out: Path) -> dict[str, Any]:
    """Accuracy every few rounds, and bytes; kept as JSON."""
    text = json.dumps(["intents", ROUNDS, STEPS, EVAL_ROWS, rule, up, DOWN, seed])
    path = out / "rounds" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if not path.is_file():
        done = federate(_setting(), rounds=ROUNDS, up=up, down=DOWN, seed=seed, rule=rule, every=EVERY)
        print(f"  {text} {done.metrics[-1]:.4f}", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {"metrics": done.metrics, "up_bytes": done.up_bytes, "down_bytes": done.down_bytes}
        path.write_text(json.dumps({"cell": text, **kept}) + "\n")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def rows(out: Path) -> list[dict[str, Any]]:
    """Mean of the seeds, and bytes of the downlink."""
    found = []
    cells = [(rule, "transform") for rule in CANDIDATES] + [(rule, "ternary 5 %") for rule in WITH_TERNARY]
    cells += [(rule, "transform") for rule in RULES if rule not in (*CANDIDATES, *SAME_AS_MEAN)]
    for rule, title in cells:
        seeds = SEEDS if rule in CANDIDATES and title == "transform" else SEEDS[:1]
        runs = [run(rule, UP[title], seed, out) for seed in seeds]
        ends = [r["metrics"][-1] for r in runs]
        note = f"{mean(r['down_bytes'] for r in runs) / ROUNDS:.0f} bytes of downlink a round; {len(runs)} seeds"
        found.append(row(f"rounds, {title}: {rule}", mean(ends), "", spread=ends, note=note))
    return found
