"""A PEFT adapter on a model: what is trained, what must be equal at all sites, and the names of both on the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedcompress.adapters.constants import INITIAL_FACTOR_SUFFIX
from fedcompress.adapters.groups import group_of
from fedcompress.adapters.masks import with_mask
from fedcompress.adapters.table import ADAPTERS
from fedcompress.errors import ConfigError, LayoutError, MismatchError
from fedcompress.types import DTYPES, Layout, TensorSpec, to_arrays

_PROMPT = {"prompt_encoder.default.embedding.weight": "prompt_embeddings"}
_NEVER = (".ranknum.",)  # of AdaLoRA: a count, which PEFT lets be trained on some dtypes
_HERE = ("auto_mapping", "base_model_name_or_path", "inference_mode", "revision", "peft_version")


@dataclass(frozen=True)
class AdaptedModel:
    """A model with an adapter.

    Args:
        model: PEFT's model.
        parameters: what is trained, by the names of PEFT's state dict, in order of name.
        constants: tensors that the adapter brought and that are not trained, by name.
        saved: names of those constants that PEFT saves.
        frozen: parameters that are not trained, but set at the start of each round.
    """

    model: Any
    parameters: Mapping[str, Any]
    constants: Mapping[str, Any]
    saved: tuple[str, ...] = ()
    frozen: Mapping[str, Any] = field(default_factory=dict)

    @property
    def one_by_one(self) -> bool:
        """Whether parameters are too large to be gathered together."""
        return False

    @property
    def layout(self) -> Layout:
        """Of what is trained."""
        return trainable_layout(self.parameters)


def attach_adapter(module: Any, config: Mapping[str, Any], freeze: Iterable[str] = ()) -> AdaptedModel:
    """Put an adapter on a model.

    Args:
        module: the base.
        config: JSON of an adapter_config.json.
        freeze: parts of names; what has one is not trained.

    Raises:
        ConfigError: PEFT refuses the config, nothing is trained, or PEFT does not save what is trained.
    """
    from peft import get_peft_model, get_peft_model_state_dict

    before = list(_tensors(module).values())
    try:
        model = get_peft_model(module, build_peft_config(config))
    except (
        TypeError,
        ValueError,
        AssertionError,
        AttributeError,
        RuntimeError,
        KeyError,
        NotImplementedError,
    ) as error:
        kind, targets = config.get("peft_type"), config.get("target_modules")
        raise ConfigError("adapter", f"{kind} on {targets}", f"does not fit the model: {error}") from error
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and any(part in name for part in (*freeze, *_NEVER)):
            parameter.requires_grad_(False)
    named = dict(model.named_parameters())
    trained = {n: p for n, p in named.items() if p.requires_grad}
    if not trained:
        raise ConfigError("adapter", config.get("peft_type"), f"trains nothing with freeze={list(freeze)}")
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    parameters = _by_saved_name(saved, trained)
    kept = {n: t for n, t in saved.items() if n not in parameters and not t.is_meta}
    seen = {id(t) for t in before} | {id(p) for p in parameters.values()}
    memory = {t.data_ptr() for t in kept.values()}
    here = {n: t for n, t in _tensors(model).items() if ".base_layer." not in n}
    added = {n: t for n, t in here.items() if id(t) not in seen and t.data_ptr() not in memory}
    return AdaptedModel(
        model, dict(sorted(parameters.items())), dict(sorted({**kept, **added}.items())), tuple(sorted(kept))
    )


def build_peft_config(config: Mapping[str, Any]) -> Any:
    """PEFT's config of its JSON, with our masks."""
    from peft import PeftConfig

    return with_mask({k: v for k, v in config.items() if k not in _HERE}, PeftConfig.from_peft_type)


def check_quantized(config: Mapping[str, Any], quantization: str) -> None:
    """Refuse adapters that do not learn on a quantised base, before it is loaded.

    Raises:
        ConfigError: names those that do.
    """
    types = {row.peft for row in ADAPTERS.values() if row.quantized}
    is_dora = bool(config.get("use_dora")) and quantization == "8bit"
    if quantization == "none" or (config.get("peft_type") in types and not is_dora):
        return
    names = [name for name, row in ADAPTERS.items() if row.quantized]
    kind = "DoRA" if is_dora else config.get("peft_type")
    if "weights" in config:
        rule = "weights of the base are trained, and those of few bits have no gradients: must be none"
        raise ConfigError("model.quantization", quantization, rule)
    raise ConfigError("model.quantization", quantization, f"{kind} does not learn on it: must be none, or use {names}")


def _tensors(module: Any) -> dict[str, Any]:
    """Parameters, buffers, and tensors that are plain attributes, as the places of FourierFT are."""
    out = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for prefix, part in module.named_modules():
        for name, value in vars(part).items():
            held = {name: value} if hasattr(value, "data_ptr") else value if name[0] != "_" else None
            for key, tensor in held.items() if isinstance(held, dict) else ():
                if hasattr(tensor, "data_ptr"):
                    out[f"{prefix}.{key}" if held is not value else f"{prefix}.{name}.{key}"] = tensor
    return out


def _by_saved_name(saved: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """Trained parameters by the keys under which PEFT saves them.

    A saved tensor is the parameter's own memory, so that is what they are matched by; on the meta device, where
    nothing has memory, by name.
    """
    by_memory = {(t.data_ptr(), tuple(t.shape)): name for name, t in saved.items() if not t.is_meta}
    out = {}
    for name, parameter in trained.items():
        plain = name.replace(".modules_to_save.default.", ".").replace(".default.", ".").removesuffix(".default")
        found = by_memory.get((parameter.data_ptr(), tuple(parameter.shape))) or _PROMPT.get(name, plain)
        if found not in saved:
            raise ConfigError("adapter", name, "is trained, but PEFT does not save it: choose another adapter")
        out[found] = parameter
    return out


def trainable_layout(parameters: Mapping[str, Any]) -> Layout:
    """Layout of trained parameters, whole even where ZeRO has partitioned them."""
    specs = []
    for name, parameter in parameters.items():
        dtype = str(parameter.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise LayoutError(f"adapter: {name}: {dtype}: one of {list(DTYPES)}")
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        specs.append(TensorSpec(name=name, shape=shape, dtype=dtype, group=group_of(name)))
    return Layout(tuple(specs))


def set_constants(attached: AdaptedModel, values: Mapping[str, Any]) -> None:
    """Write constants that were sent into the model, and take the first factors out of the base.

    Raises:
        MismatchError: a name or shape that this model does not have.
    """
    import torch
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    own, plain = attached.constants, {n: v for n, v in values.items() if not n.endswith(INITIAL_FACTOR_SUFFIX)}
    for name, value in plain.items():
        if name not in own or tuple(own[name].shape) != tuple(value.shape):
            raise MismatchError("constants", f"constants: {name}: this model has no such tensor of that shape")
    saved = {n: torch.from_numpy(plain[n].copy()) for n in attached.saved if n in plain}
    if saved:
        whole = get_peft_model_state_dict(attached.model, save_embedding_layers=False)
        set_peft_model_state_dict(attached.model, {**whole, **saved})
    with torch.no_grad():
        for name in sorted(set(plain) - set(saved)):
            own[name].copy_(torch.from_numpy(plain[name]))
    starts = {n.removesuffix(INITIAL_FACTOR_SUFFIX): v for n, v in values.items() if n.endswith(INITIAL_FACTOR_SUFFIX)}
    for name in sorted(starts):
        if ".lora_B." in name:
            _take_out(attached.model, name.partition(".lora_B.")[0], starts)


def _take_out(model: Any, module_name: str, starts: Mapping[str, Any]) -> None:
    """W - scaling * B0 A0, in float32."""
    import torch

    modules = dict(model.named_modules())
    layer = modules.get(module_name)
    if layer is None or not hasattr(layer, "get_base_layer"):
        raise MismatchError("constants", f"constants: {module_name}: this model has no such module")
    a, b = (torch.from_numpy(starts[f"{module_name}.lora_{f}.weight"]) for f in "AB")
    weight = layer.get_base_layer().weight
    if not weight.is_floating_point():
        raise ConfigError("model.quantization", str(weight.dtype), "must be none with this adapter's start")
    with torch.no_grad():
        taken = initial_product(layer, a, b)
        weight.copy_((weight.float() - taken.to(weight.device)).to(weight.dtype))


def initial_product(layer: Any, a: Any, b: Any) -> Any:
    """What first factors take out of a layer's weight, in its orientation."""
    product = layer.scaling["default"] * (b @ a)
    return product.T if getattr(layer, "fan_in_fan_out", False) else product


def start_values(attached: AdaptedModel) -> dict[str, Any]:
    """What is trained, as it stands: float32 arrays."""
    return to_arrays(attached.parameters)
