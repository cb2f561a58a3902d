"""Which factors to publish: merge error, bytes of the downlink and accuracy of LoRA rules over 20 rounds."""

from __future__ import annotations

import hashlib
import json
import sys
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.common import row
from benchmarks.federation import Merge, federate
from benchmarks.settings.base import Setting
from benchmarks.settings.clinc import clinc
from fedcompress.codecs import CodecSpec, encode_sections
from fedcompress.merging import pairs_of
from fedcompress.types import add

SEEDS = (0, 1, 2)
ROUNDS = 20
UP = "transform(budget=0.27,head=30)"
DOWN = "transform(budget=0.31,head=30)"
EQUAL = CodecSpec.parse("transform(lambda=0.3,head=30)")  # bytes at one quality
# lora-als is held to the means by its ridge: with 0.1 it is proximal, with 0.001 nearly free.
RULES = ("mean", "lora-ridge", "lora-als", "lora-als(ridge=0.1)", "lora-svd", "lora-procrustes")


@cache
def _setting() -> Setting:
    return clinc(eval_rows=4500)


def _error(merge: Merge) -> float:
    """``|B A - M| / |M|`` of the merged factors, mean over modules; M is the mean product of the sites."""
    layout, weights = _setting().layout, np.array(merge.weights) / sum(merge.weights)
    sites = [add(merge.state, u) for u in merge.updates]
    new = add(merge.state, merge.change)
    found = []
    for pair in pairs_of(layout)[0]:
        target = sum(w * s[pair.b.name] @ s[pair.a.name] for w, s in zip(weights, sites, strict=True))
        found.append(float(np.linalg.norm(new[pair.b.name] @ new[pair.a.name] - target) / np.linalg.norm(target)))
    return mean(found)


def run(rule: str, seed: int, out: Path) -> dict[str, list[float]]:
    """Accuracy, merge error and bytes at equal quality by round; kept as JSON."""
    text = json.dumps([rule, seed, ROUNDS, UP, DOWN, str(EQUAL)])
    path = out / "gauge" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if not path.is_file():
        print(f"  {text}", file=sys.stderr)
        errors = []
        sizes = []
        layout = _setting().layout

        def on_merge(merge: Merge) -> None:
            errors.append(_error(merge))
            sizes.append(float(sum(map(len, encode_sections(EQUAL, layout, merge.target)))))

        done = federate(_setting(), rounds=ROUNDS, up=UP, down=DOWN, seed=seed, rule=rule, every=4, on_merge=on_merge)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"metrics": done.metrics, "errors": errors, "sizes": sizes}) + "\n")
    found: dict[str, list[float]] = json.loads(path.read_text())
    return found


def rows(out: Path) -> list[dict[str, Any]]:
    """Mean of three seeds."""
    found = []
    for rule in RULES:
        runs = [run(rule, seed, out) for seed in SEEDS]
        ends = [r["metrics"][-1] for r in runs]
        half = mean(r["metrics"][len(r["metrics"]) // 2] for r in runs)
        found.append(
            row(f"{rule}: accuracy after {ROUNDS} rounds", mean(ends), "", spread=ends, note=f"{half:.4f} half way")
        )
        first, last = (mean(r["errors"][i] for r in runs) for i in (1, -1))
        found.append(row(f"{rule}: merge error, round 2", first, "", note=f"{last:.4f} in the last"))
        size = mean(sum(r["sizes"]) / len(r["sizes"]) for r in runs)
        found.append(row(f"{rule}: downlink at equal quality", size, "bytes"))
    return found
