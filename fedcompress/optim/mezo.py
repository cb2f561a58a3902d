"""MeZO makes zeroth-order steps in place, whose whole update is a seed and a number.

Malladi et al. 2023 (arXiv:2305.17333, algorithm 1). The loss is measured at ``w + eps z`` and ``w - eps z``, and then
``w -= lr * g * z`` with ``g = (loss+ - loss-) / (2 eps)``. It differs from the paper in this:

* z has random signs where the paper has normal numbers (FedKSeed, arXiv:2312.06353, and SPSA, Spall 1992, know both).
  They are drawn by Philox from the seed and the parameter's name, as the codec ``seeds`` draws its directions, so that
  the codec's message of pairs is the update.
* float32 weights walk ``+eps, -2 eps, +eps`` as in the paper; what rounding leaves is some 1e-7 of a weight. In
  bfloat16 and float16 the way back would miss by up to the perturbation itself, and a receiver who has only the pairs
  cannot know that. So those weights are copied before, perturbed from the copy, and put back bit for bit. That costs
  the weights once more in their own bits, less than any moment would. A step of less than half of the last bit is lost
  to rounding, at the receiver too.

The released code has ``eps`` 1e-3 and ``lr`` 1e-6 or 1e-7 for all weights, and 1e-2 and 1e-4 for LoRA. A normal z and
signs have the same variance, so these carry over. The model must be in evaluation mode: dropout would differ between
the two losses.

Library function: no command or run setting reaches it yet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedcompress.errors import ConfigError, NonFiniteError
from fedcompress.numerics.philox import signs
from fedcompress.optim.base import check_positive

if TYPE_CHECKING:
    from torch import Tensor

Pair = tuple[int, float]  # seed of a direction, and the projected gradient or the change along it


def step(
    model: Any, loss_fn: Callable[[], Any], *, seed: int, eps: float = 1e-3, lr: float = 1e-6
) -> tuple[int, float, float]:
    """Make one step in place.

    Args:
        model: a module, whose parameters are trained if they require a gradient; or a mapping from names to
            parameters. Directions are drawn for these names, so they must be those of the layout if pairs are to be
            sent.
        loss_fn: returns the loss of the weights as they are; it is called twice, without gradients.
        seed: seed of the direction.
        eps: length of the perturbation of each entry.
        lr: learning rate.

    Returns:
        The seed, the projected gradient g, and the mean of both losses.

    Raises:
        NonFiniteError: a loss is NaN or infinite; the weights are as before.
    """
    import torch

    check_positive("mezo.eps", eps)
    parameters = _list_parameters(model)
    copies = {n: p.detach().clone() for n, p in parameters.items() if p.dtype not in (torch.float32, torch.float64)}
    with torch.no_grad():
        position = 0.0  # the weights are at w + position * z
        try:
            _walk(parameters, copies, seed, position, position := eps)
            loss_above = float(loss_fn())
            _walk(parameters, copies, seed, position, position := -eps)
            loss_below = float(loss_fn())
        finally:
            _walk(parameters, copies, seed, position, 0.0)
        if not (math.isfinite(loss_above) and math.isfinite(loss_below)):
            raise NonFiniteError(f"mezo: losses {loss_above} and {loss_below} of seed {seed}: must be finite")
        slope = (loss_above - loss_below) / (2 * eps)
        _add_direction(parameters, seed, -lr * slope)
    return seed, slope, (loss_above + loss_below) / 2


def replay(model: Any, pairs: Iterable[Pair], lr: float | Sequence[float]) -> None:
    """Repeat steps in place that were taken elsewhere, from their seeds and projected gradients.

    Args:
        model: module or mapping of parameters, as for ``step``.
        pairs: seeds and projected gradients, in the order of the steps.
        lr: learning rate of all steps, or one of each.
    """
    import torch

    parameters = _list_parameters(model)
    with torch.no_grad():
        for seed, change in changes(pairs, lr):
            _add_direction(parameters, seed, change)


def changes(pairs: Iterable[Pair], lr: float | Sequence[float]) -> list[Pair]:
    """Return, for each step, the seed and what is added along its direction: what the codec ``seeds`` sends.

    Raises:
        ConfigError: there is neither one learning rate nor one for each pair.
    """
    pairs = list(pairs)
    rates = [lr] * len(pairs) if isinstance(lr, int | float) else list(lr)
    if len(rates) != len(pairs):
        raise ConfigError("mezo.lr", f"{len(rates)} rates", f"must be one, or {len(pairs)}")
    return [(seed, -rate * slope) for (seed, slope), rate in zip(pairs, rates, strict=True)]


def _list_parameters(model: Any) -> dict[str, Tensor]:
    if isinstance(model, Mapping):
        return dict(model)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ConfigError("model", type(model).__name__, "must have a parameter that requires a gradient")
    return parameters


def _walk(
    parameters: Mapping[str, Tensor], copies: Mapping[str, Tensor], seed: int, position: float, target: float
) -> None:
    """Move the weights from ``w + position z`` to ``w + target z``; those that have a copy begin from it."""
    _add_direction({n: p for n, p in parameters.items() if n not in copies}, seed, target - position)
    for name, copy in copies.items():
        parameters[name].copy_(copy)
    if target:
        _add_direction({n: parameters[n] for n in copies}, seed, target)


def _add_direction(parameters: Mapping[str, Tensor], seed: int, scalar: float) -> None:
    """Set ``w += scalar * z``, one parameter after the other, so that one direction is held at a time."""
    import torch

    for name, parameter in parameters.items():
        direction = torch.from_numpy(signs(seed, f"direction/{name}", parameter.numel()))
        parameter.add_(direction.view(parameter.shape).to(parameter.device, parameter.dtype), alpha=scalar)
