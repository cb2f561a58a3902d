"""Finds modules that some adapters have and others lack, and refuses those that are lacking by mistake."""

from __future__ import annotations

from collections.abc import Sequence

from fedcompress.adapters.folder import CONFIG_FILE, WEIGHTS_FILE
from fedcompress.errors import ConfigError
from fedcompress.files.merge.sources import Site
from fedcompress.files.merge.targets import targets_module, targets_parameter


def find_missing(sites: Sequence[Site]) -> dict[int, list[str]]:
    """Find the modules that some site has and others lack, by the number of the site that lacks them, sorted."""
    union = {f.module for s in sites for f in s.modules.values()}
    missing = {i: sorted(union - {f.module for f in s.modules.values()}) for i, s in enumerate(sites)}
    return {i: names for i, names in missing.items() if names}


def check_missing(sites: Sequence[Site]) -> None:
    """Raise ``ConfigError`` if a site lacks a module that its own config names, so that its file is broken."""
    keys = {f.module: f.keys for s in sites for f in s.modules.values()}
    for i, names in find_missing(sites).items():
        config = sites[i].config
        for name in names:
            if any(targets_module(config, key) or targets_parameter(config, key) for key in keys[name]):
                rule = (
                    f"must be in {WEIGHTS_FILE}, since {CONFIG_FILE} names it and another adapter has it. PEFT leaves "
                    "out layers whose number is the name of another adapter of the model: save again under names that "
                    "are no numbers"
                )
                raise ConfigError(f"{sites[i].path}: {name}", "missing", rule)
