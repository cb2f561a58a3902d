"""MeZO: zeroth-order steps in place, whose whole update is a seed and a number.

Malladi et al. 2023 (arXiv:2305.17333, algorithm 1). The loss is measured at ``w + eps z`` and
``w - eps z``, and ``w -= lr * g * z`` with ``g = (loss+ - loss-) / (2 eps)``. Where we differ:

* z has signs where the paper has normal numbers (FedKSeed, arXiv:2312.06353, and SPSA, Spall 1992, know
  both). They are drawn by Philox from the seed and the parameter's name, as those of the codec ``seeds`` are, so
  that its message of pairs is the update.
* float32 weights walk ``+eps, -2 eps, +eps`` as in the paper: what rounding leaves is some 1e-7 of a weight. In
  bfloat16 and float16 the way back misses by up to the perturbation itself, and a receiver who has only
  pairs cannot know. So those weights are copied before, perturbed from the copy and put back bit for bit. That
  costs the weights once more in their own bits, less than any moment would. A step of less than half of the last
  bit is lost to rounding, at the receiver too.

The released code's ``eps`` is 1e-3 and ``lr`` 1e-6 or 1e-7 for all weights, 1e-2 and 1e-4 for LoRA. A normal z and
signs have the same variance, so these carry over. The model must be in evaluation mode: dropout would
differ between the two losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fedcompress.errors import ConfigError, NonFiniteError
from fedcompress.numerics.philox import signs
from fedcompress.optim.base import check_positive

Pair = tuple[int, float]


def step(
    model: Any, loss_fn: Callable[[], Any], *, seed: int, eps: float = 1e-3, lr: float = 1e-6
) -> tuple[int, float, float]:
    """One step in place.

    Args:
        model: a module, of which those parameters are trained that require a gradient; or parameters by
            the names that directions are drawn for, those of the layout if pairs are to be sent.
        loss_fn: of the weights as they are; called twice, without gradients.
        seed: of the direction.
        eps: length of the perturbation.
        lr: learning rate.

    Returns:
        The seed, the projected gradient g, and the mean of both losses.

    Raises:
        NonFiniteError: a loss is NaN or infinite; the weights are as before.
    """
    import torch

    check_positive("mezo.eps", eps)
    parameters = _parameters(model)
    copies = {n: p.detach().clone() for n, p in parameters.items() if p.dtype not in (torch.float32, torch.float64)}
    with torch.no_grad():
        at = 0.0
        try:
            _walk(parameters, copies, seed, at, at := eps)
            above = float(loss_fn())
            _walk(parameters, copies, seed, at, at := -eps)
            below = float(loss_fn())
        finally:
            _walk(parameters, copies, seed, at, 0.0)
        if not (math.isfinite(above) and math.isfinite(below)):
            raise NonFiniteError(f"mezo: losses {above} and {below} of seed {seed}: must be finite")
        slope = (above - below) / (2 * eps)
        _add(parameters, seed, -lr * slope)
    return seed, slope, (above + below) / 2


def replay(model: Any, pairs: Iterable[Pair], lr: float | Sequence[float]) -> None:
    """Steps that were taken elsewhere, in place, from their seeds and projected gradients.

    Args:
        model: as of ``step``.
        pairs: in the order of the steps.
        lr: of all, or of each.
    """
    import torch

    parameters = _parameters(model)
    with torch.no_grad():
        for seed, change in changes(pairs, lr):
            _add(parameters, seed, change)


def changes(pairs: Iterable[Pair], lr: float | Sequence[float]) -> list[Pair]:
    """Seeds, and what is added along their directions: what the codec ``seeds`` sends."""
    pairs = list(pairs)
    rates = [lr] * len(pairs) if isinstance(lr, int | float) else list(lr)
    if len(rates) != len(pairs):
        raise ConfigError("mezo.lr", f"{len(rates)} rates", f"must be one, or {len(pairs)}")
    return [(seed, -rate * slope) for (seed, slope), rate in zip(pairs, rates, strict=True)]


def _parameters(model: Any) -> dict[str, Any]:
    if isinstance(model, Mapping):
        return dict(model)
    found = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ConfigError("model", type(model).__name__, "must have a parameter that requires a gradient")
    return found


def _walk(parameters: Mapping[str, Any], copies: Mapping[str, Any], seed: int, at: float, to: float) -> None:
    """From ``w + at z`` to ``w + to z``; from the copies where there are some."""
    _add({n: p for n, p in parameters.items() if n not in copies}, seed, to - at)
    for name, before in copies.items():
        parameters[name].copy_(before)
    if to:
        _add({n: parameters[n] for n in copies}, seed, to)


def _add(parameters: Mapping[str, Any], seed: int, scalar: float) -> None:
    """``w += scalar * z``, one parameter after the other, so that one direction is held at a time."""
    import torch

    for name, parameter in parameters.items():
        drawn = torch.from_numpy(signs(seed, f"direction/{name}", parameter.numel()))
        parameter.add_(drawn.view(parameter.shape).to(parameter.device, parameter.dtype), alpha=scalar)
