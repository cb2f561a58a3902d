"""CLINC150: the ten domains as classes (setting M), or the 150 intents with a domain or two at each site."""

from __future__ import annotations

import json

from benchmarks.settings.base import Setting, data_folder
from benchmarks.settings.texts import Texts, classification, dirichlet

SITES = 4
ALPHA = 0.3
EVAL_ROWS = 1500


def labelled_rows(split: str) -> list[tuple[str, str]]:
    """Return texts with their intents of ``train``, ``val`` or ``test``."""
    found: list[tuple[str, str]] = json.loads((data_folder("clinc150") / "data_full.json").read_text())[split]
    return found


def _domains() -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads((data_folder("clinc150") / "domains.json").read_text())
    return found


def domain_intents() -> list[list[str]]:
    """Return the intents of each domain, both by name."""
    domains = _domains()
    return [sorted(domains[name]) for name in sorted(domains)]


def clinc(*, steps: int = 12, eval_rows: int = EVAL_ROWS) -> Setting:
    """Setting M: domains by Dirichlet."""
    domains = _domains()
    names = sorted(domains)
    domain_of = {intent: names.index(d) for d, intents in domains.items() for intent in intents}
    train, test = (
        Texts(*zip(*((t, domain_of[i]) for t, i in labelled_rows(s)), strict=True)) for s in ("train", "test")
    )
    sites = dirichlet(train.labels, len(names), SITES, ALPHA)
    return classification("M", train, test, sites, classes=len(names), steps=steps, eval_rows=eval_rows)


def intents(*, sites: int = 8, steps: int = 40, eval_rows: int = EVAL_ROWS) -> Setting:
    """All 150 intents; each site has those of its own domains."""
    domains = _domains()
    names = sorted(i for group in domains.values() for i in group)
    home = {i: number % sites for number, d in enumerate(sorted(domains)) for i in domains[d]}
    rows = labelled_rows("train")
    train, test = (
        Texts(*zip(*((t, names.index(i)) for t, i in part), strict=True)) for part in (rows, labelled_rows("test"))
    )
    shares = [[n for n, (_, intent) in enumerate(rows) if home[intent] == site] for site in range(sites)]
    return classification("intents", train, test, shares, classes=len(names), steps=steps, eval_rows=eval_rows)
