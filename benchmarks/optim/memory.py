"""Compares the bytes of state that are allocated for a whole model with the formula."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.common import row
from benchmarks.optim.models import set_random_gradients, wide_llama
from fedcompress.optim import OPTIMIZERS, build_optimizer, parse_optimizer
from fedcompress.optim.base import STORES
from fedcompress.optim.table import state_by_name, state_bytes

# Rules that get a rank of a quarter of the width; other parameters have their defaults.
RANKED = ("apollo", "dct-adamw", "fira", "galore", "gradnormlorp", "ldadam", "q-galore")


def list_calls() -> list[str]:
    """Return a call of each rule, with states of 32 and of 8 bits where it has any."""
    calls = []
    for name, entry in OPTIMIZERS.items():
        ranked = ["rank=144"] if name in RANKED else []
        known = {f.name for f in fields(entry.config)}
        for store in [s for s in STORES if s in ("fp32", "8bit")] if "state" in known else [""]:
            options = ",".join(ranked + ([f"state={store}"] if store else []))
            calls.append(f"{name}({options})" if options else name)
    return calls


def rows(out: Path) -> list[dict[str, Any]]:
    """Return how far the state of four layers of SmolLM2's shapes is off the formula, and its bytes a parameter."""
    table = []
    for call in list_calls():
        model = wide_llama(4)
        optimizer = build_optimizer(model, call, lr=1e-3)
        rule = parse_optimizer(call)
        set_random_gradients(model)
        optimizer.step()
        predicted = sum(state_by_name(optimizer.param_groups).values())
        allocated = optimizer.state_bytes()
        error = abs(allocated - predicted) / max(predicted, 1)
        linear = [tuple(s) for g in optimizer.param_groups if g["rule"].startswith(rule.name) for s in g["shapes"]]
        numel = sum(shape[0] * shape[1] for shape in linear if len(shape) == 2)
        each = sum(state_bytes(rule, shape) for shape in linear) / numel
        note = f"{allocated} bytes; {each:.3f} bytes for each parameter that the rule has"
        verdict = {"target": "<= 0.02", "pass": error <= 0.02}
        table.append(row(f"state, {call}: off the formula by", error, "", note=note, **verdict))
        if call == "frugal(state=8bit)":
            table.append(row(f"state, {call}", each, "B/param", target="<= 0.55", **{"pass": each <= 0.55}))
    return table
