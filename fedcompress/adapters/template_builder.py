"""Makes the template of a run from a base model: its adapter, constants and initial values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedcompress.adapters.constants import INITIAL_FACTOR_SUFFIX, constant_array, constants_digest
from fedcompress.adapters.fingerprint import base_fingerprint
from fedcompress.adapters.folder import Adapter
from fedcompress.adapters.seeded_init import seeded_init
from fedcompress.adapters.spec import AdapterSpec
from fedcompress.adapters.template import Template, save_template
from fedcompress.config.objective import Objective
from fedcompress.errors import ConfigError


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
    from fedcompress.adapters.attach import attach_adapter, start_values
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
        attached = attach_adapter(build_base(base, objective, meta=True), config, spec.freeze)
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
    from fedcompress.adapters.data_init import targets_of

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

    from fedcompress.adapters import data_init
    from fedcompress.adapters.attach import attach_adapter
    from fedcompress.adapters.base_model import build_base

    init, options = spec.init, spec.init_options
    first: dict[str, Any] = {}
    batches = data_init.batches_of(base, texts) if texts else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_base(base, objective)
        if init == "eva":
            config, first = data_init.eva(module, config, batches, options)
            module = build_base(base, objective)
        before = {n: p.detach().clone() for n, p in module.named_parameters() if init == "corda" or _factors(config)}
        attached = attach_adapter(module, config, spec.freeze)
    for name, value in first.items():
        attached.parameters[name].data.copy_(value)
    if init == "corda":
        data_init.corda(attached, batches, str(options.get("corda_method", "kpm")))
    if init == "loftq":
        data_init.loftq(attached)
    constants = {n: constant_array(t) for n, t in attached.constants.items()}
    return attached, constants | _moved(attached, before, spec.name)


def _moved(attached: Any, before: Mapping[str, Any], name: str) -> dict[str, Any]:
    """First factors that PEFT took out of the base."""
    from fedcompress.adapters.attach import initial_product

    out = {}
    for module_name, layer in attached.model.named_modules():
        plain = module_name.removeprefix("base_model.model.")
        if not hasattr(layer, "lora_A") or f"{plain}.weight" not in before:
            continue
        moved = before[f"{plain}.weight"] - layer.get_base_layer().weight
        if not moved.any():
            continue
        a, b = (getattr(layer, f"lora_{f}")["default"].weight.detach() for f in "AB")
        wanted = initial_product(layer, a, b)
        rounding = 1e-4 * wanted.norm() + 1e-6 * before[f"{plain}.weight"].norm()
        if moved.shape != wanted.shape or (moved - wanted).norm() > rounding:
            raise ConfigError("adapter", name, f"changes {plain} in a way that sites could not rebuild")
        for factor, value in (("A", a), ("B", b)):
            out[f"{module_name}.lora_{factor}.weight{INITIAL_FACTOR_SUFFIX}"] = value.clone().numpy()
    return out


def _factors(config: Mapping[str, Any]) -> bool:
    """Whether PEFT takes first factors out of the base."""
    return config.get("peft_type") == "LORA" and config.get("init_lora_weights") not in (True, "gaussian", "orthogonal")
