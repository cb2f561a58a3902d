"""Attaches a PEFT adapter to a model, and finds what it trains and what must be equal at all sites.

Both are named as PEFT saves them, which is how they are named on the wire.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from fedcompress.adapters.constants import INITIAL_FACTOR_SUFFIX, select_initial_factors
from fedcompress.adapters.groups import group_of
from fedcompress.adapters.masks import build_masked_config
from fedcompress.adapters.table import ADAPTERS
from fedcompress.errors import ConfigError, LayoutError, MismatchError
from fedcompress.types import DTYPES, Layout, Tensors, TensorSpec, to_arrays

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor
    from torch.nn import Module

# Parameters that PEFT saves under a name that does not follow from their own.
_SAVED_NAMES = {"prompt_encoder.default.embedding.weight": "prompt_embeddings"}
# Parts of names of what is never trained: a count of AdaLoRA, which PEFT makes trainable on some dtypes.
_NEVER_TRAINED = (".ranknum.",)
# Keys of a config that say where an adapter was made, and not what it is.
_LOCAL_KEYS = ("auto_mapping", "base_model_name_or_path", "inference_mode", "revision", "peft_version")


@dataclass(frozen=True)
class AdaptedModel:
    """An adapted model is a base model with an adapter that can be trained.

    Args:
        model: PEFT's model.
        parameters: what is trained, by the names of PEFT's state dict, in order of name.
        constants: tensors that the adapter brought and that are not trained, by name.
        saved: names of those constants that PEFT saves.
        frozen: parameters that are not trained, but set at the start of each round.
    """

    model: Module
    parameters: Mapping[str, Tensor]
    constants: Mapping[str, Tensor]
    saved: tuple[str, ...] = ()
    frozen: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def one_by_one(self) -> bool:
        """Return True if parameters are too large to be gathered together, and must be gathered one by one."""
        return False

    @property
    def layout(self) -> Layout:
        """Return the layout of what is trained."""
        return trainable_layout(self.parameters)


def attach_adapter(module: Module, config: Mapping[str, Any], freeze: Iterable[str] = ()) -> AdaptedModel:
    """Attach an adapter to a model, whose modules PEFT replaces in place.

    Args:
        module: the base.
        config: the JSON of an adapter_config.json.
        freeze: parts of names; a parameter whose name has one of them is not trained.

    Returns:
        The model with what is trained and what is constant in it. Constants are all tensors that came with the
        adapter, whether PEFT saves them or not.

    Raises:
        ConfigError: PEFT refuses the config, nothing is trained, or PEFT does not save what is trained.
    """
    from peft import get_peft_model, get_peft_model_state_dict

    base_tensors = list(_collect_tensors(module).values())
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
        if parameter.requires_grad and any(part in name for part in (*freeze, *_NEVER_TRAINED)):
            parameter.requires_grad_(False)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ConfigError("adapter", config.get("peft_type"), f"trains nothing with freeze={list(freeze)}")
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    parameters = _match_saved_names(saved, trained)
    saved_constants = {n: t for n, t in saved.items() if n not in parameters and not t.is_meta}
    saved_memory = {t.data_ptr() for t in saved_constants.values()}
    known = {id(t) for t in base_tensors} | {id(p) for p in parameters.values()}
    unsaved_constants = {
        name: tensor
        for name, tensor in _collect_tensors(model).items()
        if ".base_layer." not in name and id(tensor) not in known and tensor.data_ptr() not in saved_memory
    }
    constants = {**saved_constants, **unsaved_constants}
    return AdaptedModel(
        model, dict(sorted(parameters.items())), dict(sorted(constants.items())), tuple(sorted(saved_constants))
    )


def build_peft_config(config: Mapping[str, Any]) -> PeftConfig:
    """Build PEFT's config from its JSON, with a function that chooses the mask if the mask is one of ours."""
    from peft import PeftConfig

    return build_masked_config({k: v for k, v in config.items() if k not in _LOCAL_KEYS}, PeftConfig.from_peft_type)


def check_quantized(config: Mapping[str, Any], quantization: str) -> None:
    """Refuse an adapter that does not learn on a quantised base, before the base is loaded.

    Args:
        config: the JSON of an adapter_config.json, or one that trains weights of the base.
        quantization: ``none``, ``8bit`` or ``4bit``.

    Raises:
        ConfigError: the adapter does not; the text names those that do.
    """
    quantized_types = {row.peft for row in ADAPTERS.values() if row.quantized}
    is_dora_on_8bit = bool(config.get("use_dora")) and quantization == "8bit"
    if quantization == "none" or (config.get("peft_type") in quantized_types and not is_dora_on_8bit):
        return
    names = [name for name, row in ADAPTERS.items() if row.quantized]
    kind = "DoRA" if is_dora_on_8bit else config.get("peft_type")
    if "weights" in config:
        rule = "weights of the base are trained, and those of few bits have no gradients: must be none"
        raise ConfigError("model.quantization", quantization, rule)
    raise ConfigError("model.quantization", quantization, f"{kind} does not learn on it: must be none, or use {names}")


def _collect_tensors(module: Module) -> dict[str, Tensor]:
    """Collect parameters, buffers, and tensors that are plain attributes or in plain dicts, as FourierFT's indices."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for prefix, submodule in module.named_modules():
        for name, value in vars(submodule).items():
            if hasattr(value, "data_ptr"):
                tensors[f"{prefix}.{name}"] = value
            elif isinstance(value, dict) and name[0] != "_":
                tensors |= {f"{prefix}.{name}.{key}": t for key, t in value.items() if hasattr(t, "data_ptr")}
    return tensors


def _match_saved_names(saved: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return trained parameters by the names under which PEFT saves them.

    A saved tensor is the parameter's own memory, so that is what they are matched by; on the meta device, where
    nothing has memory, they are matched by name.
    """
    by_memory = {(t.data_ptr(), tuple(t.shape)): name for name, t in saved.items() if not t.is_meta}
    parameters = {}
    for name, parameter in trained.items():
        plain_name = name.replace(".modules_to_save.default.", ".").replace(".default.", ".").removesuffix(".default")
        address = (parameter.data_ptr(), tuple(parameter.shape))
        saved_name = by_memory.get(address) or _SAVED_NAMES.get(name, plain_name)
        if saved_name not in saved:
            raise ConfigError("adapter", name, "is trained, but PEFT does not save it: choose another adapter")
        parameters[saved_name] = parameter
    return parameters


def trainable_layout(parameters: Mapping[str, Tensor]) -> Layout:
    """Return the layout of trained parameters, in their whole shapes even where ZeRO-3 has partitioned them.

    Raises:
        LayoutError: a parameter is no float of 2 or 4 bytes.
    """
    specs = []
    for name, parameter in parameters.items():
        dtype = str(parameter.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise LayoutError(f"adapter: {name}: {dtype}: one of {list(DTYPES)}")
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        specs.append(TensorSpec(name=name, shape=shape, dtype=dtype, group=group_of(name)))
    return Layout(tuple(specs))


def set_constants(attached: AdaptedModel, values: Mapping[str, NDArray[Any]]) -> None:
    """Write constants that were sent into the model, and subtract the initial factors from the base.

    Args:
        attached: the model; its constants and its base weights are changed in place.
        values: numpy arrays by name. A name that ends in ``INITIAL_FACTOR_SUFFIX`` is that of a factor A0 or B0
            whose product the base's weight W is reduced by: W - scaling * B0 A0, in float32.

    Raises:
        MismatchError: ``constants``: this model has no tensor of such a name and shape.
        ConfigError: initial factors are to be subtracted from a quantised base.
    """
    import torch
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    own = attached.constants
    plain = {n: v for n, v in values.items() if not n.endswith(INITIAL_FACTOR_SUFFIX)}
    for name, value in plain.items():
        if name not in own or tuple(own[name].shape) != tuple(value.shape):
            raise MismatchError("constants", f"constants: {name}: this model has no such tensor of that shape")
    saved = {n: torch.from_numpy(plain[n].copy()) for n in attached.saved if n in plain}
    if saved:
        state_dict = get_peft_model_state_dict(attached.model, save_embedding_layers=False)
        set_peft_model_state_dict(attached.model, {**state_dict, **saved})
    with torch.no_grad():
        for name in sorted(set(plain) - set(saved)):
            own[name].copy_(torch.from_numpy(plain[name]))
    initial_factors = select_initial_factors(values)
    for name in sorted(initial_factors):
        if ".lora_B." in name:
            _subtract_initial_product(attached.model, name.partition(".lora_B.")[0], initial_factors)


def _subtract_initial_product(model: Module, module_name: str, initial_factors: Mapping[str, NDArray[Any]]) -> None:
    """Replace a layer's weight W by W - scaling * B0 A0, computed in float32."""
    import torch

    layer = dict(model.named_modules()).get(module_name)
    if layer is None or not hasattr(layer, "get_base_layer"):
        raise MismatchError("constants", f"constants: {module_name}: this model has no such module")
    a, b = (torch.from_numpy(initial_factors[f"{module_name}.lora_{side}.weight"]) for side in "AB")
    weight = layer.get_base_layer().weight
    if not weight.is_floating_point():
        raise ConfigError("model.quantization", str(weight.dtype), "must be none with this adapter's start")
    with torch.no_grad():
        product = initial_product(layer, a, b)
        weight.copy_((weight.float() - product.to(weight.device)).to(weight.dtype))


def initial_product(layer: Module, a: Tensor, b: Tensor) -> Tensor:
    """Compute scaling * B0 A0, by which a layer's weight is reduced.

    Args:
        layer: a LoRA layer of PEFT, which has the scaling.
        a: the initial factor A0, shape (rank, in features).
        b: the initial factor B0, shape (out features, rank).

    Returns:
        The product in the shape of the weight: transposed where the layer keeps it as (in, out), as Conv1D does.
    """
    product = layer.scaling["default"] * (b @ a)
    return product.T if getattr(layer, "fan_in_fan_out", False) else product


def start_values(attached: AdaptedModel) -> Tensors:
    """Return the present values of what is trained as float32 arrays, by name.

    Arrays of float32 parameters on the CPU share their memory.
    """
    return to_arrays(attached.parameters)
