"""Bytes of state that are allocated for a whole model, against the formula."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.common import row
from benchmarks.optim.models import random_gradients, wide_llama
from fedcompress.optim import OPTIMIZERS, build_optimizer, parse_optimizer
from fedcompress.optim.base import STORES
from fedcompress.optim.table import state_by_name, state_bytes

# Ranks of a quarter of the width; other parameters as they stand.
RANKED = ("apollo", "dct-adamw", "fira", "galore", "gradnormlorp", "ldadam", "q-galore")


def calls() -> list[str]:
    """Each rule, with 32 and with 8 bits where it has states."""
    found = []
    for name, entry in OPTIMIZERS.items():
        ranked = ["rank=144"] if name in RANKED else []
        known = {f.name for f in fields(entry.config)}
        for store in [s for s in STORES if s in ("fp32", "8bit")] if "state" in known else [""]:
            options = ",".join(ranked + ([f"state={store}"] if store else []))
            found.append(f"{name}({options})" if options else name)
    return found


def rows(out: Path) -> list[dict[str, Any]]:
    """State of four layers of SmolLM2's shapes, and of its linear layers alone."""
    found = []
    for call in calls():
        model = wide_llama(4)
        optimizer, rule = build_optimizer(model, call, lr=1e-3), parse_optimizer(call)
        random_gradients(model)
        optimizer.step()
        predicted = sum(state_by_name(optimizer.param_groups).values())
        taken = optimizer.state_bytes()
        error = abs(taken - predicted) / max(predicted, 1)
        linear = [tuple(s) for g in optimizer.param_groups if g["rule"].startswith(rule.name) for s in g["shapes"]]
        each = sum(state_bytes(rule, s) for s in linear) / sum(a * b for a, b in (s for s in linear if len(s) == 2))
        note = f"{taken} bytes; {each:.3f} bytes for each parameter that the rule has"
        verdict = {"target": "<= 0.02", "pass": error <= 0.02}
        found.append(row(f"state, {call}: off the formula by", error, "", note=note, **verdict))
        if call == "frugal(state=8bit)":
            found.append(row(f"state, {call}", each, "B/param", target="<= 0.55", **{"pass": each <= 0.55}))
    return found
