"""Which parameters a matrix rule is for: by the module that owns them and their original shape, never by ``ndim``.

Under ``deepspeed.zero.Init`` a parameter's own shape is ``(0,)``; its shape is ``ds_shape``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

MATRIX, EMBEDDING, HEAD, OTHER = "matrix", "embedding", "head", "other"
HEADS: tuple[str, ...] = ("lm_head", "classifier", "score", "head", "embed_out", "qa_outputs", "pooler")
_LAYERS: tuple[str, ...] = ("layers", "layer", "h", "blocks", "block")


@dataclass(frozen=True)
class Named:
    """A trainable parameter. ``layer`` is -1 outside the stack of layers."""

    name: str
    shape: tuple[int, ...]
    role: str
    layer: int
    parameter: Any


def shape_of(parameter: Any) -> tuple[int, ...]:
    """Shape of the whole parameter, whatever shards it."""
    return tuple(getattr(parameter, "ds_shape", None) or parameter.shape)


def layer_of(name: str) -> int:
    """``model.layers.7.mlp.up.weight`` -> 7."""
    parts = name.split(".")
    found = [int(n) for before, n in itertools.pairwise(parts) if before in _LAYERS and n.isdecimal()]
    return found[0] if found else -1


def named_parameters(model: Any) -> list[Named]:
    """All trainable parameters of a model, in its order; a tied one once."""
    owners = {
        f"{prefix}.{key}" if prefix else key: module
        for prefix, module in model.named_modules()
        for key, _ in module.named_parameters(recurse=False)
    }
    outputs = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    found = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            shape = shape_of(parameter)
            role = _role(name, shape, owners[name], outputs)
            found.append(Named(name, shape, role, layer_of(name), parameter))
    return found


def _role(name: str, shape: tuple[int, ...], owner: Any, outputs: Any) -> str:
    import torch

    if isinstance(owner, torch.nn.Embedding):
        return EMBEDDING
    if owner is outputs or any(part in HEADS for part in name.split(".")):
        return HEAD
    is_linear = isinstance(owner, torch.nn.Linear) or type(owner).__name__ == "Conv1D"
    return MATRIX if is_linear and len(shape) == 2 and name.endswith("weight") else OTHER
