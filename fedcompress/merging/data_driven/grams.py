"""Gram matrices of what goes into linear modules; needs torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Floats
from fedcompress.merging.data_driven.probe import hooked, module_at, resting, run, tokens


def collect_grams(model: Any, module_names: Sequence[str], batches: Iterable[Any]) -> dict[str, Floats]:
    """``X^T X / tokens`` of the inputs of some modules over batches, as ``regmean`` takes it.

    The mean over tokens and not the sum, so that the weights of sites say how much each counts. Products are in
    float32, sums in float64. The model is in evaluation mode meanwhile and left as it was found.

    Cost: d_in^2 floats a module, here and on the way to the coordinator: 64 MiB in float32 for a width of 4096, half
    of it if only a triangle is sent; often thousands of times the adapter.

    Privacy: these are second moments of the site's own activations. With fewer tokens than d_in the matrix shows
    the very space that they span, with one token the activation itself up to its sign. Secure aggregation is no help as
    it is, since each site's update is multiplied with its own matrix.

    Args:
        model: a ``torch.nn.Module``.
        module_names: modules whose input's last dimension is d_in.
        batches: mappings (called as keywords; padding of an ``attention_mask`` is left out), tuples or tensors.

    Returns:
        By module, (d_in, d_in), float64, symmetric.

    Raises:
        ConfigError: a module is unknown or saw no token, or an input is NaN or infinite.
    """
    import torch

    sums: dict[str, tuple[Any, int]] = {}
    now: list[Any] = [None]
    handles: list[Any] = []

    def watch(name: str) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            rows = tokens((*inputs, *named.values())[0], now[0]).float()
            product, seen = (rows.T @ rows).double(), rows.shape[0]
            if name in sums:
                product, seen = product + sums[name][0], seen + sums[name][1]
            sums[name] = product, seen

        return hook

    with torch.no_grad(), resting(model), hooked(handles):
        for name in module_names:
            module = module_at(model, name, "module_names")
            handles.append(module.register_forward_pre_hook(watch(name), with_kwargs=True))
        for batch in batches:
            now[0] = batch
            run(model, batch)
    return {name: _mean(name, *sums.get(name, (None, 0))) for name in module_names}


def _mean(name: str, total: Any, seen: int) -> Floats:
    if not seen:
        raise ConfigError("batches", f"no token for {name}", "must make every module run")
    mean: Floats = total.cpu().numpy() / seen
    if not np.isfinite(mean).all():
        raise ConfigError("batches", f"NaN or infinity into {name}", "must give finite activations")
    return 0.5 * (mean + mean.T)
