"""Compares resetting and keeping the optimizer state when a new global state arrives, over ten rounds."""

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

ROUNDS = 10
SEEDS = (0, 1, 2)
LR = 2e-3
RULES = ("adamw8bit", "frugal(update_gap=12,free_scale=0.1)")
STATES = ("reset", "keep")


@cache
def _load_setting() -> Setting:
    return clinc(eval_rows=1500)


def run(rule: str, state: str, seed: int, out: Path) -> list[float]:
    """Return the accuracy half way and at the end of one run, which is cached as JSON.

    Args:
        rule: call of the optimizer.
        state: ``reset`` or ``keep``.
        seed: seed of the run.
        out: folder of the cache.

    Returns:
        Two accuracies.
    """
    text = json.dumps(["across", ROUNDS, LR, rule, state, seed])
    path = out / "across" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if not path.is_file():
        setting = _load_setting()
        setting.use(rule, LR, state)
        result = federate(setting, rounds=ROUNDS, up="none", down="none", seed=seed, every=ROUNDS // 2)
        print(f"  {text} {result.metrics[-1]:.4f}", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"cell": text, "metrics": result.metrics[1:]}) + "\n")
    metrics: list[float] = json.loads(path.read_text())["metrics"]
    return metrics


def rows(out: Path) -> list[dict[str, Any]]:
    """Return, for each rule and each treatment of its state, the mean accuracy of three seeds."""
    table = []
    for rule in RULES:
        for state in STATES:
            runs = [run(rule, state, seed, out) for seed in SEEDS]
            ends = [r[-1] for r in runs]
            note = f"{mean(r[0] for r in runs):.4f} half way"
            table.append(row(f"across rounds, {rule}: {state}", mean(ends), "", spread=ends, note=note))
    return table
