"""Writes what a run has published to a folder that can be used as it is: weights, model card, labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcompress.adapters.card import RunFacts, write_card
from fedcompress.adapters.full.export import export_run
from fedcompress.adapters.full.modes import trains_base_weights
from fedcompress.adapters.template import Template
from fedcompress.types import Array
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


def write_export(
    folder: Path, template: Template, state: Mapping[str, Array], constants: Mapping[str, Any], facts: RunFacts
) -> None:
    """Write a published state, as a stock PEFT folder or as a model, with its card and its labels.

    Args:
        folder: where to write.
        template: what the run started from.
        state: float32 values by name, as in the template's layout.
        constants: numpy arrays by name, as in the template's constants.safetensors.
        facts: of the run, for the card.

    Raises:
        ConfigError: the base of a model is not where it was when the template was made.
    """
    export_run(folder, template, state, constants)
    config = template.adapter.config
    form = "model" if trains_base_weights(config) else "adapter"
    write_card(folder, str(config.get("base_model_name_or_path") or "BASE"), template.objective, facts, form=form)
