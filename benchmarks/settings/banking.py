"""BANKING77: 77 intents of bank customers, shared out to sites by Dirichlet."""

from __future__ import annotations

import csv

from benchmarks.settings.base import Setting, data_folder
from benchmarks.settings.texts import Texts, classification, dirichlet

ALPHA = 0.3


def labelled_rows() -> list[tuple[str, str]]:
    """Return all texts with their intents, those to train on first."""
    found = []
    for name in ("train", "test"):
        with (data_folder("banking77") / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
            found += [(row["text"], row["category"]) for row in csv.DictReader(stream)]
    return found


def banking(*, sites: int = 8, steps: int = 40, eval_rows: int = 1500) -> Setting:
    """All intents, by Dirichlet."""
    folder = data_folder("banking77")
    parts = []
    for name in ("train", "test"):
        with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
            parts.append([(row["text"], row["category"]) for row in csv.DictReader(stream)])
    names = sorted({label for _, label in parts[0]})
    train, test = (Texts(*zip(*((t, names.index(c)) for t, c in part), strict=True)) for part in parts)
    shares = dirichlet(train.labels, len(names), sites, ALPHA)
    return classification("banking", train, test, shares, classes=len(names), steps=steps, eval_rows=eval_rows)
