"""What rules that run a model share: batches, tokens that are not padding, and a model that is left as it was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fedcompress.errors import ConfigError


def run(model: Any, batch: Any) -> Any:
    """Call a model: a mapping as keywords, a tuple or list as arguments, anything else as the one argument."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def tokens(values: Any, batch: Any) -> Any:
    """Vectors of a tensor, (tokens, width); without padding if the batch has an ``attention_mask`` of its shape."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if mask is not None and tuple(values.shape[:-1]) == tuple(mask.shape):
        return values[mask.to(values.device).bool()]
    return values.reshape(-1, values.shape[-1])


def first(output: Any) -> Any:
    """The tensor of an output: its logits, or its first entry, or itself."""
    if hasattr(output, "logits"):
        return output.logits
    return output[0] if isinstance(output, tuple | list) else output


def module_at(model: Any, name: str, field: str) -> Any:
    """A module by its name.

    Raises:
        ConfigError: the model has none.
    """
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ConfigError(field, name, "must be the name of a module of the model") from error


@contextmanager
def resting(model: Any) -> Iterator[None]:
    """No dropout and no gradients of parameters inside; afterwards every flag is as before."""
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
def hooked(handles: list[Any]) -> Iterator[None]:
    """Hooks that go away at the end; the list may still grow inside."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
