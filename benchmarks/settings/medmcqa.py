"""MedMCQA as in the demo: exam questions to their department, a hospital for each."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks.settings.base import Setting
from benchmarks.settings.texts import Texts, classification
from fedcompress.demo.data import LABELS, write_sites


def medmcqa(*, sites: int = 8, steps: int = 40, eval_rows: int = 1500) -> Setting:
    """Departments; most questions of one lie at its home hospital. Tests on the held-out rows of all."""
    rows: dict[str, list[tuple[str, int]]] = {"train": [], "heldout": []}
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        for site in write_sites(Path(folder), sites):
            first = len(rows["train"])
            for kind, path in (("train", site.train), ("heldout", site.heldout)):
                read = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
                rows[kind] += [(r["text"], LABELS.index(r["label"])) for r in read]
            shares.append(list(range(first, len(rows["train"]))))
    train, test = (Texts(*zip(*rows[kind], strict=True), length=96) for kind in ("train", "heldout"))
    return classification("medmcqa", train, test, shares, classes=len(LABELS), steps=steps, eval_rows=eval_rows)
