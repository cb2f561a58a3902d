"""Gram matrices of the inputs of linear modules are collected here; this needs torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Floats
from fedcompress.merging.data_driven.probe import (
    call_model,
    evaluation_mode,
    find_module,
    removing_hooks,
    token_vectors,
)

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.utils.hooks import RemovableHandle


def collect_grams(model: Module, module_names: Sequence[str], batches: Iterable[Any]) -> dict[str, Floats]:
    """Collect ``X^T X / tokens`` of the inputs X of some modules over batches, as ``regmean`` takes it.

    It is the mean over tokens and not the sum, so that the weights of sites say how much each counts. Products are in
    float32, sums in float64. The model is in evaluation mode meanwhile and left as it was found.

    Cost: d_in^2 numbers for each module, here and on the way to the coordinator: 64 MiB in float32 for a width of
    4096, half of it if only a triangle is sent; often thousands of times the adapter.

    Privacy: these are second moments of the site's own activations. With fewer tokens than d_in the matrix shows the
    very space that they span, with one token the activation itself up to its sign. Secure aggregation is no help as
    it is, since each site's update is multiplied with its own matrix.

    Args:
        model: the model whose modules are watched.
        module_names: names of modules whose input's last dimension is d_in.
        batches: mappings (called as keywords; padding of an ``attention_mask`` is left out), tuples or tensors.

    Returns:
        By module, shape (d_in, d_in), float64, symmetric.

    Raises:
        ConfigError: a module is unknown or saw no token, or an input is NaN or infinite.
    """
    import torch

    sums: dict[str, tuple[Tensor, int]] = {}  # by module: the sum of X^T X, and the tokens so far
    current_batch: list[Any] = [None]
    handles: list[RemovableHandle] = []

    def watch(name: str) -> Callable[[Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
        def hook(module: Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            rows = token_vectors((*inputs, *named.values())[0], current_batch[0]).float()
            product = (rows.T @ rows).double()
            count = rows.shape[0]
            if name in sums:
                product = product + sums[name][0]
                count = count + sums[name][1]
            sums[name] = product, count

        return hook

    with torch.no_grad(), evaluation_mode(model), removing_hooks(handles):
        for name in module_names:
            module = find_module(model, name, "module_names")
            handles.append(module.register_forward_pre_hook(watch(name), with_kwargs=True))
        for batch in batches:
            current_batch[0] = batch
            call_model(model, batch)
    return {name: _mean_product(name, *sums.get(name, (None, 0))) for name in module_names}


def _mean_product(name: str, total: Tensor | None, tokens: int) -> Floats:
    if total is None or not tokens:
        raise ConfigError("batches", f"no token for {name}", "must make every module run")
    mean: Floats = total.cpu().numpy() / tokens
    if not np.isfinite(mean).all():
        raise ConfigError("batches", f"NaN or infinity into {name}", "must give finite activations")
    return 0.5 * (mean + mean.T)
