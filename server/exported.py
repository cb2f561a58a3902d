"""Gathers what the card beside an exported version tells of its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedcompress.adapters.card import RunFacts
from server.ledger.reader import LedgerReader


def gather_facts(reader: LedgerReader, run: str, version: int, settings: Mapping[str, Any]) -> RunFacts:
    """Gather what the card of a version tells.

    Args:
        reader: of the run's ledger.
        run: name of the run.
        version: number of the version.
        settings: the run's config with Flower's keys, of which ``codec`` and ``rule`` are told; it may be empty.

    Returns:
        The facts; what nobody knows is left out.
    """
    quality = dict(reader.quality(run)).get(version)
    return RunFacts(
        run=run,
        version=version,
        sites=sum(site.acked is not None for site in reader.sites(run)),
        codec=str(settings.get("codec", "")),
        rule=str(settings.get("rule", "")),
        accuracy=quality.accuracy if quality else None,
        loss=quality.loss if quality else None,
    )
