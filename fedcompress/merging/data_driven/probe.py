"""Holds what rules that run a model share: batches, padding, hooks, and a model that is left as it was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fedcompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.utils.hooks import RemovableHandle


def call_model(model: Module, batch: Any) -> Any:
    """Call a model with a batch: a mapping as keywords, a tuple or list as arguments, else as the one argument."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def token_vectors(values: Tensor, batch: Any) -> Tensor:
    """Return the vectors of all tokens that are not padding, shape (tokens, width).

    ``values`` has the shape (..., width). Padding is known only if the batch is a mapping with an ``attention_mask``
    of the shape (...); all vectors are returned otherwise.
    """
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if mask is not None and tuple(values.shape[:-1]) == tuple(mask.shape):
        return values[mask.to(values.device).bool()]
    return values.reshape(-1, values.shape[-1])


def first_tensor(output: Any) -> Tensor:
    """Return the tensor of a module's output: its ``logits``, or the first entry of a tuple or list, or itself."""
    if hasattr(output, "logits"):
        return output.logits
    return output[0] if isinstance(output, tuple | list) else output


def find_module(model: Module, name: str, field: str) -> Module:
    """Find a module of a model.

    Args:
        model: the model.
        name: dotted name of the module.
        field: name of the argument that the name is from, for the message.

    Returns:
        The module.

    Raises:
        ConfigError: the model has no module of this name.
    """
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ConfigError(field, name, "must be the name of a module of the model") from error


@contextmanager
def evaluation_mode(model: Module) -> Iterator[None]:
    """Turn off dropout and the gradients of all parameters; afterwards every flag is as it was before."""
    training = {m: m.training for m in model.modules()}
    learning = {p: p.requires_grad for p in model.parameters()}
    try:
        model.eval()
        for parameter in learning:
            parameter.requires_grad = False
        yield
    finally:
        for module, flag in training.items():
            module.training = flag
        for parameter, flag in learning.items():
            parameter.requires_grad = flag


@contextmanager
def removing_hooks(handles: list[RemovableHandle]) -> Iterator[None]:
    """Remove hooks at the end; the list of their handles may still grow inside."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
