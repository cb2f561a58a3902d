"""The role of a parameter decides which rule steps it.

It follows from the module that owns the parameter and from the parameter's original shape, never from ``ndim``. Under
``deepspeed.zero.Init`` a parameter's own shape is ``(0,)``; its original shape is then in ``ds_shape``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedcompress.parameter_names import strip_wrappers

if TYPE_CHECKING:
    from torch import Tensor

# The roles: weight of a linear layer, embedding, output layer, and all else (norms, biases, convolutions).
MATRIX = "matrix"
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
        role: ``matrix``, ``embedding``, ``head`` or ``other``.
        layer: number of its layer; -1 outside of the stack of layers.
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


def parse_layer(name: str) -> int:
    """Return the number of the layer that a parameter's name gives, or -1.

    >>> parse_layer("model.layers.7.mlp.up.weight"), parse_layer("model.norm.weight")
    (7, -1)
    """
    parts = name.split(".")
    numbers = [int(part) for before, part in itertools.pairwise(parts) if before in _LAYERS and part.isdecimal()]
    return numbers[0] if numbers else -1


def list_named_parameters(model: Any) -> list[NamedParameter]:
    """List all trainable parameters of a model in its order; a tied one stands there once."""
    owners = {
        f"{prefix}.{key}" if prefix else key: module
        for prefix, module in model.named_modules()
        for key, _ in module.named_parameters(recurse=False)
    }
    output_layer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    parameters = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            shape = read_shape(parameter)
            role = _find_role(name, shape, owners[name], output_layer)
            plain = strip_wrappers(name)  # a compiled model is the same model
            parameters.append(NamedParameter(plain, shape, role, parse_layer(plain), parameter))
    return parameters


def _find_role(name: str, shape: tuple[int, ...], owner: Any, output_layer: Any) -> str:
    import torch

    if isinstance(owner, torch.nn.Embedding):
        return EMBEDDING
    if owner is output_layer or any(part in HEADS for part in name.split(".")):
        return HEAD
    is_linear = isinstance(owner, torch.nn.Linear) or type(owner).__name__ == "Conv1D"
    return MATRIX if is_linear and len(shape) == 2 and name.endswith("weight") else OTHER
