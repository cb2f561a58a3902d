"""The start of a run as a folder: a stock PEFT adapter, and what else all sites must agree on.

adapter_config.json, adapter_model.safetensors   what is trained, and where it starts
fedcompress.json                                 objective, base, tokenizer, what is frozen
constants.safetensors                            tensors that a site may not be able to rebuild
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcompress.adapters.fingerprint import base_fingerprint
from fedcompress.adapters.folder import Adapter, load_adapter, save_adapter, save_weights
from fedcompress.adapters.init import seeded_init
from fedcompress.adapters.naming import AdapterSpec
from fedcompress.errors import ConfigError, StateError
from fedcompress.objective import Objective, objective_from, objective_json

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
        array = as_array(value) if hasattr(value, "detach") else value
        sha.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def write_template(
    folder: Path, base: Any, objective: Objective, spec: AdapterSpec, *, seed: int, texts: Sequence[str] = ()
) -> Template:
    """Make the start of a run.

    Args:
        folder: where to write.
        base: the ``BaseModel``; adapters that start from a seed need only its config.json.
        objective: what is learnt.
        spec: the adapter.
        seed: of everything that is drawn.
        texts: samples of what will be learnt from, for adapters that start from data.

    Raises:
        ConfigError: the adapter does not fit the model, or its start cannot be rebuilt by sites; or it needs
            texts, and there are none, or the other way round.
    """
    from fedcompress.adapters.attach import attach, start_values
    from fedcompress.adapters.base_model import build_base, has_weights, tokenizer_digest

    config, weights = spec.config(objective), has_weights(base.path)
    meta = spec.row.start == "seed" and not spec.freeze
    if not meta and not weights:
        raise ConfigError("model.path", base.path, f"must have weights: {spec.name} starts from them")
    if (spec.row.start == "texts") != bool(texts):
        needs = "must be given: the adapter starts from sample texts" if not texts else "are not for this adapter"
        raise ConfigError("texts", f"{len(texts)} with {spec.name}", needs)
    if spec.density:
        config["r"] = _rank_of(base, objective, config, spec.density)
    constants: Mapping[str, Any] = {}
    if meta:
        attached = attach(build_base(base, objective, meta=True), config, spec.freeze)
        layout = attached.layout
        tensors = seeded_init(layout, seed)
    else:
        attached, constants = _attach_for_real(base, objective, config, spec, seed, texts)
        layout, tensors = attached.layout, start_values(attached)
    template = Template(
        adapter=Adapter(config=_portable(config, attached, base), layout=layout, tensors=tensors),
        objective=objective,
        name=spec.name,
        freeze=spec.freeze,
        quantization=spec.row.quantization,
        base_fingerprint=base_fingerprint(base.path).hex() if weights else "",
        tokenizer=tokenizer_digest(base.path),
        constants=constants_digest(constants),
        saved=attached.saved,
    )
    save_template(folder, template, constants)
    return template


def _rank_of(base: Any, objective: Objective, config: Mapping[str, Any], density: float) -> int:
    """The r for which r * (rows + columns) entries of each matrix are about a share of all."""
    from fedcompress.adapters.starts import targets_of

    shapes = targets_of(base, objective, config).values()
    return max(1, round(density * sum(m * n for m, n in shapes) / sum(m + n for m, n in shapes)))


def _portable(config: Mapping[str, Any], attached: Any, base: Any) -> dict[str, Any]:
    """The config as sites and users get it: targets resolved, nothing of this machine but the base's name."""
    resolved = attached.model.peft_config["default"]
    out = {**config, "base_model_name_or_path": str(base.path), "inference_mode": True}
    if resolved.peft_type.value == "LORA":  # sites are sent the start
        out |= {"init_lora_weights": True, "eva_config": None, "corda_config": None}
        out |= {k: dict(getattr(resolved, k)) for k in ("rank_pattern", "alpha_pattern")}
    targets = getattr(resolved, "target_modules", None)
    if isinstance(targets, set | list | tuple):
        out["target_modules"] = sorted(targets)
    return out


def _attach_for_real(
    base: Any, objective: Objective, config: Mapping[str, Any], spec: AdapterSpec, seed: int, texts: Sequence[str]
) -> tuple[Any, dict[str, Any]]:
    """The adapter as PEFT starts it, and its constants, with the factors that PEFT took out of the base."""
    import torch

    from fedcompress.adapters import starts
    from fedcompress.adapters.attach import attach
    from fedcompress.adapters.base_model import build_base

    init, options = spec.init, spec.init_options
    first: dict[str, Any] = {}
    batches = starts.batches_of(base, texts) if texts else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_base(base, objective)
        if init == "eva":
            config, first = starts.eva(module, config, batches, options)
            module = build_base(base, objective)
        before = {n: p.detach().clone() for n, p in module.named_parameters() if init == "corda" or _factors(config)}
        attached = attach(module, config, spec.freeze)
    for name, value in first.items():
        attached.parameters[name].data.copy_(value)
    if init == "corda":
        starts.corda(attached, batches, str(options.get("corda_method", "kpm")))
    if init == "loftq":
        starts.loftq(attached)
    constants = {n: as_array(t) for n, t in attached.constants.items()}
    return attached, constants | _moved(attached, before, spec.name)


def _moved(attached: Any, before: Mapping[str, Any], name: str) -> dict[str, Any]:
    """First factors that PEFT took out of the base."""
    from fedcompress.adapters.attach import taken_out

    out = {}
    for module_name, layer in attached.model.named_modules():
        plain = module_name.removeprefix("base_model.model.")
        if not hasattr(layer, "lora_A") or f"{plain}.weight" not in before:
            continue
        moved = before[f"{plain}.weight"] - layer.get_base_layer().weight
        if not moved.any():
            continue
        a, b = (getattr(layer, f"lora_{f}")["default"].weight.detach() for f in "AB")
        wanted = taken_out(layer, a, b)
        rounding = 1e-4 * wanted.norm() + 1e-6 * before[f"{plain}.weight"].norm()
        if moved.shape != wanted.shape or (moved - wanted).norm() > rounding:
            raise ConfigError("adapter", name, f"changes {plain} in a way that sites could not rebuild")
        for factor, value in (("A", a), ("B", b)):
            out[f"{module_name}.lora_{factor}.weight{START}"] = value.clone().numpy()
    return out


def _factors(config: Mapping[str, Any]) -> bool:
    """Whether PEFT takes first factors out of the base."""
    return config.get("peft_type") == "LORA" and config.get("init_lora_weights") not in (True, "gaussian", "orthogonal")


def as_array(tensor: Any) -> NDArray[Any]:
    """A tensor as numpy has it; bfloat16 widened."""
    value = tensor.detach().cpu().contiguous()
    array: NDArray[Any] = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    return array


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
