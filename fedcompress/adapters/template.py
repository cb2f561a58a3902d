"""The start of a run as a folder: a stock PEFT adapter, and what else all sites must agree on.

adapter_config.json, adapter_model.safetensors   what is trained, and where it starts
fedcompress.json                                 objective, base, tokenizer, what is frozen
constants.safetensors                            tensors that a site may not be able to rebuild
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedcompress.adapters.constants import CONSTANTS, MANIFEST
from fedcompress.adapters.folder import Adapter, load_adapter, save_adapter, save_weights
from fedcompress.config.objective import Objective, objective_from, objective_json
from fedcompress.errors import ConfigError, StateError

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Template:
    """What a run starts from.

    Args:
        adapter: config, layout and first state.
        objective: what is learnt.
        name: the adapter as the user named it.
        freeze: parts of names of what is not trained.
        base_fingerprint: SHA-256 of the base's weights, hex; empty if it was made without them.
        tokenizer: digest of the tokenizer, hex; empty as above.
        constants: digest of the constants, hex; empty if there are none.
        saved: names of the constants that PEFT saves.
        quantization: that sites must load the base with; empty if it is theirs to choose.
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


def load_template(folder: Path) -> Template:
    """Read a template; neither torch nor PEFT is needed.

    Raises:
        ConfigError: a file is missing, or the manifest is of another version.
        StateError: a file does not parse.
    """
    adapter, path = load_adapter(folder), folder / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version = raw.pop("version")
        kept = {k: raw[k] for k in ("name", "base_fingerprint", "tokenizer", "constants", "quantization")}
        freeze, saved, objective = tuple(raw["freeze"]), tuple(raw["saved"]), raw["objective"]
    except FileNotFoundError:
        raise ConfigError("initial-adapter", path, "must exist: `fedcompress template` makes such a folder") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StateError(f"initial-adapter: {path}: does not parse: {type(error).__name__}: {error}") from error
    if version != VERSION:
        raise ConfigError("initial-adapter", version, f"must be of version {VERSION}")
    return Template(adapter=adapter, objective=objective_from(objective), freeze=freeze, saved=saved, **kept)


def save_template(folder: Path, template: Template, constants: Mapping[str, Any]) -> None:
    """Write the folder."""
    adapter = template.adapter
    if "weights" in adapter.config:
        save_weights(folder, adapter.config, adapter.layout)
    else:
        save_adapter(folder, adapter.config, adapter.layout, adapter.tensors)
    if constants:
        from safetensors.numpy import save_file

        save_file({n: np.ascontiguousarray(v) for n, v in constants.items()}, folder / CONSTANTS)
    facts = {
        "version": VERSION,
        "name": template.name,
        "objective": json.loads(objective_json(template.objective)),
        "freeze": list(template.freeze),
        "saved": list(template.saved),
        "base_fingerprint": template.base_fingerprint,
        "tokenizer": template.tokenizer,
        "quantization": template.quantization,
        "constants": template.constants,
    }
    (folder / MANIFEST).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
