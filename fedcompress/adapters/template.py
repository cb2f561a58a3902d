"""Loads and saves the template of a run: a stock PEFT adapter, and what else all sites must agree on.

A template is a folder with these files:

adapter_config.json, adapter_model.safetensors   what is trained, and where it starts
fedcompress.json                                 objective, base, tokenizer, what is frozen
constants.safetensors                            tensors that a site may not be able to rebuild

A run that trains the base's own weights starts from the base, so that its template has layout.json in place of
adapter_model.safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcompress.adapters.constants import CONSTANTS, MANIFEST, save_constants
from fedcompress.adapters.folder import Adapter, load_adapter, save_adapter, save_weights
from fedcompress.config.objective import Objective, objective_from, objective_json
from fedcompress.errors import ConfigError, StateError

VERSION = 1  # of fedcompress.json
_TEXT_KEYS = ("name", "base_fingerprint", "tokenizer", "constants", "quantization")  # of fedcompress.json


@dataclass(frozen=True, kw_only=True)
class Template:
    """A template says what a run starts from.

    Args:
        adapter: config, layout and first state.
        objective: what is learnt.
        name: the adapter as the user named it.
        freeze: parts of names; what has one of them is not trained.
        base_fingerprint: SHA-256 of the base's weights, hex; empty if the template was made without them.
        tokenizer: digest of the tokenizer, hex; empty if the template was made without it.
        constants: digest of the constants, hex; empty if there are none.
        saved: names of the constants that PEFT saves.
        quantization: with which sites must load the base; empty if it is theirs to choose.
        positions: tokens that the base has positions for; 0: it has no such limit.
    """

    adapter: Adapter
    objective: Objective
    name: str = ""
    freeze: tuple[str, ...] = ()
    base_fingerprint: str = ""
    tokenizer: str = ""
    constants: str = ""
    saved: tuple[str, ...] = ()
    quantization: str = ""
    positions: int = 0


def load_template(folder: Path) -> Template:
    """Load a template; neither torch nor PEFT is needed.

    Raises:
        ConfigError: a file is missing, or the manifest is of another version.
        StateError: a file does not parse.
    """
    adapter = load_adapter(folder)
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest.pop("version")
        texts = {key: manifest[key] for key in _TEXT_KEYS}
        freeze = tuple(manifest["freeze"])
        saved = tuple(manifest["saved"])
        objective = manifest["objective"]
        positions = int(manifest.get("positions", 0))
    except FileNotFoundError:
        raise ConfigError("initial-adapter", path, "must exist: `fedcompress template` makes such a folder") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StateError(f"initial-adapter: {path}: does not parse: {type(error).__name__}: {error}") from error
    if version != VERSION:
        raise ConfigError("initial-adapter", version, f"must be of version {VERSION}")
    return Template(
        adapter=adapter, objective=objective_from(objective), freeze=freeze, saved=saved, positions=positions, **texts
    )


def save_template(folder: Path, template: Template, constants: Mapping[str, Any]) -> None:
    """Write a template, the manifest last.

    Args:
        folder: where to write.
        template: what the run starts from.
        constants: numpy arrays by name, those whose digest the template has.
    """
    adapter = template.adapter
    if "weights" in adapter.config:
        save_weights(folder, adapter.config, adapter.layout)
    else:
        save_adapter(folder, adapter.config, adapter.layout, adapter.tensors)
    if constants:
        save_constants(folder / CONSTANTS, constants)
    manifest = {
        "version": VERSION,
        "objective": json.loads(objective_json(template.objective)),
        "freeze": list(template.freeze),
        "saved": list(template.saved),
        **{key: getattr(template, key) for key in _TEXT_KEYS},
    }
    if template.positions:
        manifest["positions"] = template.positions
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
