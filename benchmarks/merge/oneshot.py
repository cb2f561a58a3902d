"""One adapter a site, merged once by every rule: accuracy, from exact updates and from sparse ternary ones."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.common import row
from benchmarks.settings.banking import banking
from benchmarks.settings.base import Setting
from benchmarks.settings.clinc import intents
from benchmarks.settings.medmcqa import medmcqa
from fedcompress.codecs import CodecSpec, decode_sections, encode_sections
from fedcompress.merging import RULES, InMemoryUpdates, Merger, parse_rule
from fedcompress.types import Tensors, add, subtract

SEEDS = (0, 1, 2)
STEPS = 60
EVAL_ROWS = 1000
MAKERS: dict[str, Callable[[], Setting]] = {
    "intents": lambda: intents(steps=STEPS, eval_rows=EVAL_ROWS),
    "banking": lambda: banking(steps=STEPS, eval_rows=EVAL_ROWS),
    "medmcqa": lambda: medmcqa(steps=STEPS, eval_rows=EVAL_ROWS),
}
CODES = {"exact": "none", "ternary 5 %": "topk(density=0.05)|ternary"}


@cache
def setting_of(name: str) -> Setting:
    """A setting, loaded once."""
    return MAKERS[name]()


@cache
def updates_of(name: str, seed: int, out: Path) -> list[Tensors]:
    """One update a site, from the same start; made once."""
    setting = setting_of(name)
    path = out / "updates" / f"{name}-{seed}.npz"
    sites = range(len(setting.examples))
    if not path.is_file():
        start = setting.initial(seed)
        made = [subtract(setting.train(start, site, 1, seed), start) for site in sites]
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{f"{site}/{n}": v for site, update in enumerate(made) for n, v in update.items()})
    with np.load(path) as stored:
        return [{t.name: stored[f"{site}/{t.name}"] for t in setting.layout.tensors} for site in sites]


def accuracy(name: str, seed: int, code: str, rule: str, space: str, out: Path) -> float:
    """Measure the accuracy of the merged model; a figure that was measured before is read from its JSON."""
    text = json.dumps([name, STEPS, EVAL_ROWS, seed, code, rule, space])
    path = out / "cells" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if not path.is_file():
        setting, spec = setting_of(name), CodecSpec.parse(code)
        updates = [
            decode_sections(spec, setting.layout, encode_sections(spec, setting.layout, u, seed=site))
            for site, u in enumerate(updates_of(name, seed, out))
        ]
        start = setting.initial(seed)
        merger = Merger(rule=parse_rule(rule), layout=setting.layout, space=space)
        merged = merger.merge(start, setting.examples, InMemoryUpdates(setting.layout, updates))
        value = setting.evaluate(add(start, merged))
        print(f"  {text} {value:.4f}", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"cell": text, "accuracy": value}) + "\n")
    return float(json.loads(path.read_text())["accuracy"])


def rows(out: Path) -> list[dict[str, Any]]:
    """Mean of three seeds for each data set, code, rule and space."""
    found = []
    for name in MAKERS:
        for title, code in CODES.items():
            for rule, entry in RULES.items():
                for space in ("factors", "product") if entry.kind == "elementwise" else ("factors",):
                    values = [accuracy(name, seed, code, rule, space, out) for seed in SEEDS]
                    found.append(row(f"{name}, {title}: {rule}, {space}", mean(values), "", spread=values))
    return found
