"""What becomes of optimizer state when a new global state arrives: reset or kept, over ten rounds."""

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
from benchmarks.settings.clinc import clinc

ROUNDS, SEEDS, LR = 10, (0, 1, 2), 2e-3
RULES = ("adamw8bit", "frugal(update_gap=12,free_scale=0.1)")
STATES = ("reset", "keep")


@cache
def _setting() -> Setting:
    return clinc(eval_rows=1500)


def run(rule: str, state: str, seed: int, out: Path) -> list[float]:
    """Accuracy half way and at the end; kept as JSON."""
    text = json.dumps(["across", ROUNDS, LR, rule, state, seed])
    path = out / "across" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if not path.is_file():
        setting = _setting()
        setting.use(rule, LR, state)
        done = federate(setting, rounds=ROUNDS, up="none", down="none", seed=seed, every=ROUNDS // 2)
        print(f"  {text} {done.metrics[-1]:.4f}", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"cell": text, "metrics": done.metrics[1:]}) + "\n")
    found: list[float] = json.loads(path.read_text())["metrics"]
    return found


def rows(out: Path) -> list[dict[str, Any]]:
    """Mean of three seeds."""
    found = []
    for rule in RULES:
        for state in STATES:
            runs = [run(rule, state, seed, out) for seed in SEEDS]
            ends = [r[-1] for r in runs]
            note = f"{mean(r[0] for r in runs):.4f} half way"
            found.append(row(f"across rounds, {rule}: {state}", mean(ends), "", spread=ends, note=note))
    return found
