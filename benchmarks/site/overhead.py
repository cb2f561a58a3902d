"""Seconds of a round that are neither training nor evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import row
from benchmarks.site.place import Place, metrics_of
from fedcompress.wire import digest_of

# seconds of a round that the share is of
ROUNDS = 6
STEPS = 4
ROUND = 60.0


def rows(out: Path) -> list[dict[str, Any]]:
    """Median of the rounds after the first, which loads the model."""
    place = Place(out / "overhead")
    spent: list[float] = []
    merged: tuple[str, ...] = ()
    loads = 0.0
    try:
        for number in range(1, ROUNDS + 1):
            reply, seconds = place.train(replace(place.task(number, STEPS), merged=merged))
            merged = (digest_of(reply).hex(),)  # as in a run; what was not merged is decoded, and given back
            metrics = metrics_of(reply)
            loads = metrics["model_loads"]
            if number > 1:
                spent.append(seconds - metrics["seconds_train"] - metrics["seconds_evaluate"])
    finally:
        place.stop()
    typical = median(spent)
    note = "decode, load state, extract, encode, commit, reply: LoRA r=16 on SmolLM2-135M"
    return [
        row("overhead of a round", typical, "s", target="<= 1.5", **{"pass": typical <= 1.5}, spread=spent, note=note),
        row("share of a round of 60 s", typical / ROUND, "", target="<= 0.02", **{"pass": typical / ROUND <= 0.02}),
        row(f"loads of the model in {ROUNDS} rounds", loads, "", target="1", **{"pass": loads == 1}),
    ]
