"""The start of a run as a folder: a stock PEFT adapter, and what else all sites must agree on.

adapter_config.json, adapter_model.safetensors   what is trained, and where it starts
fedcompress.json                                 objective, base, tokenizer, what is frozen
constants.safetensors                            tensors that a site may not be able to rebuild
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedcompress.adapters.fingerprint import base_fingerprint
from fedcompress.adapters.folder import Adapter, load_adapter, save_adapter
from fedcompress.adapters.init import seeded_init
from fedcompress.adapters.table import AdapterSpec
from fedcompress.errors import ConfigError, StateError
from fedcompress.objective import Objective, objective_from, objective_json
from fedcompress.types import Layout, Tensors

MANIFEST, CONSTANTS = "fedcompress.json", "constants.safetensors"
START = ".start"  # ends the names of factors that were taken out of the base
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
    """

    adapter: Adapter
    objective: Objective
    name: str = ""
    freeze: tuple[str, ...] = ()
    base_fingerprint: str = ""
    tokenizer: str = ""
    constants: str = ""
    saved: tuple[str, ...] = ()


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
        kept = {k: raw[k] for k in ("name", "base_fingerprint", "tokenizer", "constants")}
        freeze, saved, objective = tuple(raw["freeze"]), tuple(raw["saved"]), raw["objective"]
    except FileNotFoundError:
        raise ConfigError("initial-adapter", path, "must exist: `fedcompress template` makes such a folder") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StateError(f"initial-adapter: {path}: does not parse: {type(error).__name__}: {error}") from error
    if version != VERSION:
        raise ConfigError("initial-adapter", version, f"must be of version {VERSION}")
    return Template(adapter=adapter, objective=objective_from(objective), freeze=freeze, saved=saved, **kept)


def load_constants(data: bytes) -> dict[str, Any]:
    """Constants from the bytes of their file.

    Raises:
        StateError: they do not parse.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return dict(load(data))
    except (SafetensorError, ValueError) as error:
        raise StateError(f"constants: do not parse: {error}") from error


def constants_digest(constants: Mapping[str, Any]) -> str:
    """SHA-256, hex, over names, dtypes, shapes and bytes; empty if there are none."""
    if not constants:
        return ""
    sha = hashlib.sha256(b"fedcompress-constants-v1")
    for name, value in sorted(constants.items()):
        array = value.detach().cpu().contiguous().numpy() if hasattr(value, "detach") else value
        sha.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def write_template(folder: Path, base: Any, objective: Objective, spec: AdapterSpec, *, seed: int) -> Template:
    """Make the start of a run.

    Args:
        folder: where to write.
        base: the ``BaseModel``; adapters that start from a seed need only its config.json.
        objective: what is learnt.
        spec: the adapter.
        seed: of everything that is drawn.

    Raises:
        ConfigError: the adapter does not fit the model, or its start cannot be rebuilt by sites.
    """
    from fedcompress.adapters.attach import attach, start_values
    from fedcompress.adapters.base_model import build_base, has_weights, tokenizer_digest

    config = spec.config(objective)
    weights = has_weights(base.path)
    meta = spec.row.start == "seed" and not spec.freeze
    if not meta and not weights:
        raise ConfigError("model.path", base.path, f"must have weights: {spec.name} starts from them")
    module = build_base(base, objective, meta=meta)
    constants: Mapping[str, Any] = {}
    if meta:
        attached = attach(module, config, spec.freeze)
        layout = attached.layout
        tensors = seeded_init(layout, seed)
    else:
        attached, constants = _attach_for_real(module, config, spec, seed)
        layout, tensors = attached.layout, start_values(attached)
    if attached.model.peft_config["default"].peft_type.value == "LORA":
        config["init_lora_weights"] = True  # sites are sent the start
    template = Template(
        adapter=Adapter(config=_portable(config, attached, base), layout=layout, tensors=tensors),
        objective=objective,
        name=spec.name,
        freeze=spec.freeze,
        base_fingerprint=base_fingerprint(base.path).hex() if weights else "",
        tokenizer=tokenizer_digest(base.path),
        constants=constants_digest(constants),
        saved=attached.saved,
    )
    save_template(folder, template, constants)
    return template


def _portable(config: Mapping[str, Any], attached: Any, base: Any) -> dict[str, Any]:
    """The config as sites and users get it: targets resolved, nothing of this machine but the base's name."""
    resolved = attached.model.peft_config["default"]
    out = {**config, "base_model_name_or_path": str(base.path), "inference_mode": True}
    targets = getattr(resolved, "target_modules", None)
    if isinstance(targets, set | list | tuple):
        out["target_modules"] = sorted(targets)
    return out


def _attach_for_real(
    module: Any, config: Mapping[str, Any], spec: AdapterSpec, seed: int
) -> tuple[Any, dict[str, Any]]:
    """The adapter as PEFT starts it, and its constants, with the factors that PEFT took out of the base."""
    import torch

    from fedcompress.adapters.attach import attach

    before = {n: p.detach().clone() for n, p in module.named_parameters() if _is_factored(config)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        attached = attach(module, config, spec.freeze)
    constants = {n: np.asarray(t.detach().cpu().numpy()) for n, t in attached.constants.items()}
    for name, layer in attached.model.named_modules():
        plain = name.removeprefix("base_model.model.")
        if not before or not hasattr(layer, "lora_A") or f"{plain}.weight" not in before:
            continue
        moved = before[f"{plain}.weight"] - layer.get_base_layer().weight
        if not moved.any():
            continue
        a, b = (getattr(layer, f"lora_{f}")["default"].weight.detach() for f in "AB")
        if not torch.allclose(moved, layer.scaling["default"] * (b @ a), atol=1e-5):
            raise ConfigError("adapter", spec.name, "changes the base in a way that sites could not rebuild")
        for factor, value in (("A", a), ("B", b)):
            constants[f"{name}.lora_{factor}.weight{START}"] = value.clone().numpy()
    return attached, constants


def _is_factored(config: Mapping[str, Any]) -> bool:
    return config.get("peft_type") == "LORA" and config.get("init_lora_weights") not in (True, "gaussian", "orthogonal")


def save_template(folder: Path, template: Template, constants: Mapping[str, Any]) -> None:
    """Write the folder."""
    adapter = template.adapter
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
        "constants": template.constants,
    }
    (folder / MANIFEST).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def export_adapter(folder: Path, template: Template, state: Tensors, constants: Mapping[str, Any]) -> None:
    """Write a published state as a stock PEFT folder, which needs neither our base nor our constants.

    Factors that were taken out of the base are put beside those that are trained, with the other sign, at twice
    the rank: W - s B0 A0 + s B A = W + s [B, -B0] [A; A0]. Constants that PEFT saves are saved.
    """
    adapter = template.adapter
    starts = {n.removesuffix(START): v for n, v in constants.items() if n.endswith(START)}
    config = {**adapter.config, "inference_mode": True}
    saved = {n: constants[n] for n in template.saved}
    if not starts:
        save_adapter(folder, config, adapter.layout, state, saved)
        return
    tensors = dict(state)
    for name, start in starts.items():
        if ".lora_A." in name:
            tensors[name] = np.concatenate([state[name], start])
        else:
            tensors[name] = np.concatenate([state[name], -start], axis=1)
    grown = np.sqrt(2) if config.get("use_rslora") else 2
    config |= {"r": 2 * config["r"], "lora_alpha": config["lora_alpha"] * grown}
    shapes = {n: tuple(v.shape) for n, v in tensors.items()}
    save_adapter(folder, config, _reshaped(adapter.layout, shapes), tensors, saved)


def _reshaped(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    return Layout(tuple(replace(t, shape=shapes[t.name]) for t in layout.tensors))
