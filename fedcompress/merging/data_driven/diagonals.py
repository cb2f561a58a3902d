"""The diagonal of the Fisher information of trainable parameters is collected here; this needs torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.data_driven.probe import evaluation_mode
from fedcompress.types import Array, Tensors

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from torch.nn import Module

Example = TypeVar("Example")


def collect_fisher(
    model: Module,
    examples: Iterable[Example],
    log_probabilities: Callable[[Module, Example], Tensor],
    *,
    samples: int = 0,
    seed: int = 0,
) -> Tensors:
    """Collect ``mean_x E_y (d log p(y|x) / d theta)^2`` for each trainable entry, as ``fisher`` takes it.

    Matena & Raffel 2022 (arXiv:2111.09832, equations 2 and 3): labels are the model's own, so that the examples need
    none. The expectation over them is exact with ``samples=0``, at a backward pass for each class; else it is over so
    many draws. The model is in evaluation mode meanwhile and left as it was found.

    Privacy: these are means of squared gradients of the site's examples; of one example, its gradient up to signs.

    Args:
        model: only parameters that require a gradient are looked at.
        examples: one after another, each for itself: squares of sums are not sums of squares.
        log_probabilities: from the model and an example to log p of each class, shape (classes,).
        samples: labels drawn for an example; 0 is all of them, by their probability.
        seed: seed of the draws.

    Returns:
        By parameter name, of the parameter's shape, float32.

    Raises:
        ConfigError: ``samples`` is below 0, there is no example or nothing to train, or a gradient is NaN or infinite.
    """
    import torch

    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ConfigError("model", type(model).__name__, "must have a parameter that requires a gradient")
    sums = {n: torch.zeros(p.shape, dtype=torch.float64) for n, p in trained.items()}
    generator = torch.Generator().manual_seed(seed)
    count = 0
    with evaluation_mode(model), torch.enable_grad():
        for parameter in trained.values():
            parameter.requires_grad = True
        for example in examples:
            logs = log_probabilities(model, example)
            count += 1
            for label, share in _draw_labels(logs.detach().double().cpu().exp(), samples, generator):
                gradients = torch.autograd.grad(
                    logs[label], list(trained.values()), retain_graph=True, allow_unused=True
                )
                for name, gradient in zip(trained, gradients, strict=True):
                    if gradient is not None:
                        sums[name] += share * gradient.detach().double().cpu().square()
    if not count:
        raise ConfigError("examples", "none", "must be at least one")
    return {n: _check_finite(n, (s / count).float().numpy()) for n, s in sums.items()}


def _check_finite(name: str, value: Array) -> Array:
    if not np.isfinite(value).all():
        raise ConfigError("examples", f"NaN or infinity in the gradient of {name}", "must give finite gradients")
    return value


def _draw_labels(probabilities: Tensor, samples: int, generator: Generator) -> list[tuple[int, float]]:
    """Return labels with how much each counts: all of them by their probability, or ``samples`` draws alike."""
    import torch

    if samples < 0:
        raise ConfigError("samples", samples, "must be at least 0")
    if not samples:
        return [(label, float(probability)) for label, probability in enumerate(probabilities)]
    drawn = torch.multinomial(probabilities, samples, replacement=True, generator=generator)
    return [(int(label), 1 / samples) for label in drawn]
