"""Builds the template of a run from a base model: its adapter, its constants and its initial values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcompress.adapters.constants import INITIAL_FACTOR_SUFFIX, constants_digest, to_numpy
from fedcompress.adapters.fingerprint import base_fingerprint
from fedcompress.adapters.folder import Adapter
from fedcompress.adapters.groups import PREFIX
from fedcompress.adapters.positions import count_positions
from fedcompress.adapters.scaling import find_keys
from fedcompress.adapters.seeded_init import seeded_init
from fedcompress.adapters.spec import AdapterSpec
from fedcompress.adapters.template import Template, save_template
from fedcompress.config.objective import Objective
from fedcompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from fedcompress.adapters.attach import AdaptedModel
    from fedcompress.adapters.base_model import BaseModel


def write_template(
    folder: Path, base: BaseModel, objective: Objective, spec: AdapterSpec, *, seed: int, texts: Sequence[str] = ()
) -> Template:
    """Build the start of a run and write it to a folder.

    An adapter that starts from a seed is built from the shapes alone, so that its base needs no weights here.

    Args:
        folder: where to write.
        base: the base model; for an adapter that starts from a seed a config.json is enough.
        objective: what is learnt.
        spec: the adapter.
        seed: of everything that is drawn.
        texts: samples of what will be learnt from, for an adapter that starts from data.

    Returns:
        What was written.

    Raises:
        ConfigError: the adapter does not fit the model, or sites could not rebuild its start; or it needs texts and
            there are none, or the other way round.
    """
    from fedcompress.adapters.attach import attach_adapter, start_values
    from fedcompress.adapters.base_model import build_base, has_weights, tokenizer_digest

    config = spec.config(objective)
    has_base_weights = has_weights(base.path)
    # trained rows of an embedding start as the base has them
    starts_from_seed = spec.row.start == "seed" and not spec.freeze and not config.get("trainable_token_indices")
    if not starts_from_seed and not has_base_weights:
        raise ConfigError("model.path", base.path, f"must have weights: {spec.name} starts from them")
    if (spec.row.start == "texts") != bool(texts):
        rule = "must be given: the adapter starts from sample texts" if not texts else "are not for this adapter"
        raise ConfigError("texts", f"{len(texts)} with {spec.name}", rule)
    if spec.density:
        config["r"] = _choose_rank(base, objective, config, spec.density)
    constants: Mapping[str, Any] = {}
    if starts_from_seed:
        attached = attach_adapter(build_base(base, objective, meta=True), config, spec.freeze)
        layout = attached.layout
        tensors = seeded_init(layout, seed)
    else:
        attached, constants = _attach_and_init(base, objective, config, spec, seed, texts)
        layout = attached.layout
        tensors = start_values(attached)
    _check_targets(attached, config, spec.name)
    template = Template(
        adapter=Adapter(config=_make_portable(config, attached, base), layout=layout, tensors=tensors),
        objective=objective,
        positions=count_positions(base.path, config),
        name=spec.name,
        freeze=spec.freeze,
        quantization=spec.row.quantization,
        base_fingerprint=base_fingerprint(base.path).hex() if has_base_weights else "",
        tokenizer=tokenizer_digest(base.path),
        constants=constants_digest(constants),
        saved=attached.saved,
    )
    save_template(folder, template, constants)
    return template


def _choose_rank(base: BaseModel, objective: Objective, config: Mapping[str, Any], density: float) -> int:
    """Choose the r for which r * (rows + columns) entries of each matrix are about ``density`` of all entries."""
    from fedcompress.adapters.data_init import find_target_shapes

    shapes = find_target_shapes(base, objective, config).values()
    return max(1, round(density * sum(m * n for m, n in shapes) / sum(m + n for m, n in shapes)))


def _make_portable(config: Mapping[str, Any], attached: AdaptedModel, base: BaseModel) -> dict[str, Any]:
    """Return the config as sites and users get it: targets resolved, and nothing of this machine but the base's name.

    A LoRA config no longer says how the factors were initialised, since sites are sent them.
    """
    resolved = attached.model.peft_config["default"]
    portable = {**config, "base_model_name_or_path": str(base.path), "inference_mode": True}
    if resolved.peft_type.value == "LORA":
        portable |= {"init_lora_weights": True, "eva_config": None, "corda_config": None}
        layers = [n for n, m in attached.model.named_modules() if hasattr(m, "lora_A")]
        names = [name.removeprefix(PREFIX) for name in layers]
        for key in ("rank_pattern", "alpha_pattern"):
            portable[key] = _anchor_pattern(config.get(key) or getattr(resolved, key), names)
    targets = getattr(resolved, "target_modules", None)
    if isinstance(targets, set | list | tuple):
        portable["target_modules"] = sorted(targets)
    # PEFT turns targets that are 3-dimensional parameters, as those of experts, into names of parameters
    parameters = getattr(resolved, "target_parameters", None)
    if parameters:
        portable["target_parameters"] = list(parameters)
    return portable


def _check_targets(attached: AdaptedModel, config: Mapping[str, Any], name: str) -> None:
    """Raise ``ConfigError`` if a listed target names no module of the base, which PEFT passes over beside others."""
    asked = config.get("target_modules")
    resolved = getattr(attached.model.peft_config["default"], "target_modules", None)
    if not isinstance(asked, list) or not isinstance(resolved, set | list | tuple):
        return
    modules = [module_name for module_name, _ in attached.model.named_modules()]
    # PEFT has taken those out that it turned into names of parameters
    unused = sorted(t for t in set(asked) & set(resolved) if not any(m.endswith(f".{t}") for m in modules))
    if unused:
        rule = "must be names of modules of the base: correct or leave them out; experts may be target_parameters"
        raise ConfigError(f"adapter.{name}.targets", "+".join(unused), rule)


def _anchor_pattern(pattern: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    """Write a pattern so that the order of its keys does not matter, since files are written with sorted keys.

    Args:
        pattern: numbers by parts of names, of which PEFT takes the first that matches.
        names: of the adapted modules.

    Returns:
        The pattern itself if no two keys match one module; else numbers by the anchored names of whole modules.
    """
    matches = {name: find_keys(pattern, name) for name in names}
    if all(len(keys) < 2 for keys in matches.values()):
        return dict(pattern)
    return {f"^{re.escape(name)}": pattern[keys[0]] for name, keys in matches.items() if keys}


def _attach_and_init(
    base: BaseModel, objective: Objective, config: Mapping[str, Any], spec: AdapterSpec, seed: int, texts: Sequence[str]
) -> tuple[AdaptedModel, dict[str, Any]]:
    """Attach the adapter to the loaded base, and initialise it by PEFT or, for three kinds of LoRA, by ``data_init``.

    Returns:
        The adapted model and its constants, with the initial factors whose product the base was reduced by.
    """
    import torch

    from fedcompress.adapters import data_init
    from fedcompress.adapters.attach import attach_adapter
    from fedcompress.adapters.base_model import build_base

    init, options = spec.init, spec.init_options
    eva_factors: dict[str, Tensor] = {}
    batches = data_init.tokenize_texts(base, texts) if texts else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_base(base, objective)
        if init == "eva":
            config, eva_factors = data_init.find_eva_factors(module, config, batches, options)
            module = build_base(base, objective)  # PEFT has changed the first one
        changes_base = init == "corda" or _peft_changes_base(config)
        before = {n: p.detach().clone() for n, p in module.named_parameters() if changes_base}
        attached = attach_adapter(module, config, spec.freeze)
    for name, value in eva_factors.items():
        attached.parameters[name].data.copy_(value)
    if init == "corda":
        data_init.set_corda_factors(attached, batches, str(options.get("corda_method", "kpm")))
    if init == "loftq":
        data_init.set_loftq_factors(attached)
    constants = {n: to_numpy(t) for n, t in attached.constants.items()}
    return attached, constants | _collect_initial_factors(attached, before, spec.name)


def _peft_changes_base(config: Mapping[str, Any]) -> bool:
    """Return True if PEFT may reduce the base's weights by the product of the factors that it initialises."""
    harmless = (True, "gaussian", "orthogonal")
    return config.get("peft_type") == "LORA" and config.get("init_lora_weights") not in harmless


def _collect_initial_factors(attached: AdaptedModel, before: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """Collect the factors whose product the base's weights were reduced by, as float32 arrays.

    Args:
        attached: the adapted model, with the weights of the base as they are now.
        before: the base's weights as they were, by name.
        name: of the adapter, for errors.

    Raises:
        ConfigError: a weight was changed by more than that product, up to rounding.
    """
    from fedcompress.adapters.attach import initial_product

    initial_factors = {}
    for module_name, layer in attached.model.named_modules():
        plain_name = module_name.removeprefix(PREFIX)
        if not hasattr(layer, "lora_A") or f"{plain_name}.weight" not in before:
            continue
        weight_before = before[f"{plain_name}.weight"]
        change = weight_before - layer.get_base_layer().weight
        if not change.any():
            continue
        a, b = (getattr(layer, f"lora_{side}")["default"].weight.detach() for side in "AB")
        product = initial_product(layer, a, b)
        tolerance = 1e-4 * product.norm() + 1e-6 * weight_before.norm()
        if change.shape != product.shape or (change - product).norm() > tolerance:
            raise ConfigError("adapter", name, f"changes {plain_name} in a way that sites could not rebuild")
        for side, value in (("A", a), ("B", b)):
            factor_name = f"{module_name}.lora_{side}.weight{INITIAL_FACTOR_SUFFIX}"
            initial_factors[factor_name] = value.clone().numpy()
    return initial_factors
