"""The role of a parameter decides which rule steps it.

It follows from the module that owns the parameter and from the parameter's original shape, never from ``ndim``. Under
``deepspeed.zero.Init`` a parameter's own shape is ``(0,)``; its original shape is then in ``ds_shape``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedcompress.parameter_names import strip_wrappers

if TYPE_CHECKING:
    from torch import Tensor

# The roles: weight of a linear layer, weights of all experts of a layer in one parameter (three dimensions),
# embedding, output layer, and all else (norms, biases, convolutions).
MATRIX = "matrix"
EXPERTS = "experts"
EMBEDDING = "embedding"
HEAD = "head"
OTHER = "other"

# Parts of names by which an output layer is known, beside ``model.get_output_embeddings()``.
HEADS: tuple[str, ...] = ("lm_head", "classifier", "score", "head", "embed_out", "qa_outputs", "pooler")
# Parts of names that stand before the number of a layer.
_LAYERS: tuple[str, ...] = ("layers", "layer", "h", "blocks", "block")


@dataclass(frozen=True)
class NamedParameter:
    """A named parameter is a trainable parameter with its place in the model.

    Args:
        name: name in the model.
        shape: shape of the whole parameter.
        role: ``matrix``, ``experts``, ``embedding``, ``head`` or ``other``.
        layer: number of its layer among the layers that are trained; -1 outside of them.
        parameter: the torch parameter.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    layer: int
    parameter: Tensor


def read_shape(parameter: Tensor) -> tuple[int, ...]:
    """Return the shape of the whole parameter, whatever shards it."""
    return tuple(getattr(parameter, "ds_shape", None) or parameter.shape)


def find_layer_path(name: str) -> str:
    """Return the path of the layer that a parameter or module is in, or nothing.

    >>> find_layer_path("encoder.block.7.layer.0.SelfAttention.q.weight"), find_layer_path("model.norm.weight")
    ('encoder.block.7', '')
    """
    parts = name.split(".")
    for index, (before, part) in enumerate(itertools.pairwise(parts)):
        if before in _LAYERS and part.isdecimal():
            return ".".join(parts[: index + 2])
    return ""


def number_layers(names: Iterable[str]) -> dict[str, int]:
    """Number the layers that some parameters are in, from 0 in the order in which they come.

    Each stack of layers is counted apart: an encoder of 6 and a decoder of 6 are 12 layers.

    >>> number_layers(["encoder.block.0.q", "encoder.block.1.q", "decoder.block.0.q", "shared"])
    {'encoder.block.0': 0, 'encoder.block.1': 1, 'decoder.block.0': 2}

    Args:
        names: of the parameters, in the model's order.

    Returns:
        The numbers by the path of the layer.
    """
    paths = dict.fromkeys(path for name in names if (path := find_layer_path(name)))
    return {path: number for number, path in enumerate(paths)}


def list_named_parameters(model: Any) -> list[NamedParameter]:
    """List all trainable parameters of a model in its order; a tied one stands there once."""
    owners = {
        f"{prefix}.{key}" if prefix else key: module
        for prefix, module in model.named_modules()
        for key, _ in module.named_parameters(recurse=False)
    }
    output_layer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    numbers = number_layers(strip_wrappers(name) for name, _ in trained)
    parameters = []
    for name, parameter in trained:
        shape = read_shape(parameter)
        role = _find_role(name, shape, owners[name], output_layer)
        plain = strip_wrappers(name)  # a compiled model is the same model
        layer = numbers.get(find_layer_path(plain), -1)
        parameters.append(NamedParameter(plain, shape, role, layer, parameter))
    return parameters


def _find_role(name: str, shape: tuple[int, ...], owner: Any, output_layer: Any) -> str:
    import torch

    if isinstance(owner, torch.nn.Embedding):
        return EMBEDDING
    if owner is output_layer or any(part in HEADS for part in name.split(".")):
        return HEAD
    if _holds_experts(name, shape, owner):
        return EXPERTS
    is_linear = isinstance(owner, torch.nn.Linear) or type(owner).__name__ == "Conv1D"
    return MATRIX if is_linear and len(shape) == 2 and name.endswith("weight") else OTHER


def _holds_experts(name: str, shape: tuple[int, ...], owner: Any) -> bool:
    """Return whether a parameter has a matrix for each expert, as transformers 5 keeps them: shape (experts, m, n)."""
    import torch

    is_named_so = "expert" in name.lower() or "expert" in type(owner).__name__.lower()
    return is_named_so and len(shape) == 3 and not isinstance(owner, torch.nn.modules.conv._ConvNd)
