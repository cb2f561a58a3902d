"""Chooses scales by what a model puts out: the q of DAREx, and the gain of ternary codes.

Nothing here knows a model: callers pass functions that score one, or statistics of its inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.chain import SelectThenQuantize
from fedcompress.codecs.quantizers.ternary import Ternary
from fedcompress.codecs.sections import decode_sections, encode_sections
from fedcompress.codecs.spec import CodecSpec
from fedcompress.errors import ConfigError
from fedcompress.types import Array, Layout, Tensors

# Gains that ``calibrate_ternary`` tries, about 2^(1/4) apart.
GAINS: tuple[float, ...] = (0.5, 0.6, 0.7, 0.84, 1.0, 1.19, 1.41, 1.68, 2.0, 2.4, 2.8, 3.4, 4.0)
Floats = NDArray[np.float64]
PATIENCE = 4  # steps of the fine grid without a gain that end it, as in DAREx's code
PAST_MINIMUM = 0.8  # share of rows whose objective has passed its least, where the analytic search ends


def find_q_by_score(score: Callable[[float], float], density: float, *, step: float = 0.1) -> float:
    """Find the q of DAREx-q with the best validation score.

    DAREx (arXiv:2410.09344, section 4.1): a coarse grid from the keep rate to 1, then a fine one up and down from its
    best point, each way ending after four steps without a gain. The released code's fine grid goes one way, and may
    leave the range; this one does not.

    Args:
        score: called with q; higher is better.
        density: the keep rate, which is the lowest q, above 0 and at most 1.
        step: of the coarse grid; the fine one has a tenth of it.

    Returns:
        The best q that was tried, from ``density`` to 1.

    Raises:
        ConfigError: the density is out of range.
    """
    _check_density(density)
    coarse = [min(density + i * step, 1.0) for i in range(math.ceil((1 - density) / step) + 1)]
    scores = {q: score(q) for q in dict.fromkeys(coarse)}
    best = max(scores, key=lambda q: scores[q])
    for direction in (1, -1):
        steps_without_gain = 0
        for i in range(1, 10):
            q = best + direction * i * step / 10
            if not density <= q <= 1 or steps_without_gain == PATIENCE:
                break
            scores[q] = score(q)
            steps_without_gain = 0 if scores[q] >= max(scores.values()) else steps_without_gain + 1
    return max(scores, key=lambda q: scores[q])


def find_q_by_output(
    distance: Callable[[float, int], float], density: float, *, seeds: int = 4, step: float = 0.1
) -> float:
    """Find the q that changes a model's output least on unlabelled data.

    DAREx (arXiv:2410.09344, section 4.2): q is judged by its mean distance over mask seeds. Where there are more than
    two, the seed that is farthest from the median is left out.

    Args:
        distance: called with q and a mask seed; the change of the output, say the mean change of the last hidden
            state; lower is better.
        density: the keep rate, which is the lowest q, above 0 and at most 1.
        seeds: how many mask seeds are tried, from 0 on.
        step: of the coarse grid, as in ``find_q_by_score``.

    Returns:
        The best q that was tried, from ``density`` to 1.

    Raises:
        ConfigError: the density is out of range.
    """

    def score(q: float) -> float:
        distances = np.array([distance(q, s) for s in range(seeds)])
        if seeds > 2:
            distances = np.delete(distances, int(np.argmax(np.abs(distances - np.median(distances)))))
        return -float(distances.mean())

    return find_q_by_score(score, density, step=step)


def find_q_by_bound(
    delta: Array, mean_inputs: Array, density: float, *, eta: float = 1.0, gamma: float = 0.95
) -> float:
    """Find the q of one linear layer from a bound on its output change, without labels and without runs of a model.

    DAREx (arXiv:2410.09344, section 4.3, theorem 3.1), as its code has it. For each output row it takes the q in
    [density, 0.999] with the least
    ``|eta (1 - density / q) sum c + eta^2 Phi sum c^2 / (4 q^2) + ln(2 / (1 - gamma))|``, where
    ``c = delta * mean_inputs``. The grid, common to all rows, ends where 80 % of them have passed their least.

    Args:
        delta: the layer's update, shape (outputs, inputs).
        mean_inputs: the mean input of the layer on a few rows of data, shape (inputs,).
        density: the keep rate p, above 0 and at most 1. ``Phi = (1 - 2 p') / ln((1 - p') / p')`` has the drop rate
            ``p' = 1 - p``.
        eta: a factor of the bound; the authors search it on data, about 0.3 to 1.
        gamma: the bound's confidence, below 1.

    Returns:
        The mean over rows of their best q.

    Raises:
        ConfigError: the density is out of range.
    """
    _check_density(density)
    drop = 1 - density
    phi = 0.5 if abs(drop - 0.5) < 1e-9 else (1 - 2 * drop) / math.log((1 - drop) / drop)
    parts = delta.astype(np.float64) * mean_inputs.astype(np.float64)
    first, second = parts.sum(1), np.square(parts).sum(1)
    least = np.full(first.size, np.inf)
    best_q = np.full(first.size, density)
    is_past_minimum = np.zeros(first.size, np.bool_)
    for q in np.arange(density, 1.0, 1e-3):
        bound = np.abs(
            eta * (1 - density / q) * first + eta**2 * phi * second / (4 * q * q) + math.log(2 / (1 - gamma))
        )
        is_better = bound < least
        best_q = np.where(is_better, q, best_q)
        least = np.minimum(bound, least)
        is_past_minimum |= ~is_better
        if is_past_minimum.mean() >= PAST_MINIMUM:
            break
    return float(best_q.mean())


def learn_q(
    gradient: Callable[[Mapping[str, float]], Mapping[str, float]],
    layers: Sequence[str],
    density: float,
    *,
    steps: int = 200,
    lr: float = 1e-2,
) -> dict[str, float]:
    """Learn one q for each layer by Adam on the caller's loss, as DAREx's per-layer option does.

    The learning rate falls by a cosine; there is no weight decay; b1 is 0.9 and b2 0.999.

    Args:
        gradient: called with all q by layer; returns the derivative of the loss (in DAREx, the squared change of the
            five largest logits) by each of them.
        layers: names, in any order.
        density: the keep rate, which is the lowest q and where all q start, above 0 and at most 1.
        steps: of the optimizer.
        lr: the first learning rate.

    Returns:
        The q of each layer, from ``density`` to 1.

    Raises:
        ConfigError: the density is out of range.
    """
    _check_density(density)
    q = np.full(len(layers), max(density, 1e-3))
    first, second = np.zeros(q.size), np.zeros(q.size)
    for t in range(1, steps + 1):
        derivatives = gradient(dict(zip(layers, q.tolist(), strict=True)))
        grad = np.array([derivatives[name] for name in layers])
        first = 0.9 * first + 0.1 * grad
        second = 0.999 * second + 0.001 * grad**2
        direction = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        q = np.clip(q - lr * (1 + math.cos(math.pi * (t - 1) / steps)) / 2 * direction, density, 1.0)
    return dict(zip(layers, q.tolist(), strict=True))


def calibrate_ternary(
    spec: CodecSpec,
    layout: Layout,
    tensors: Tensors,
    distance: Callable[[Tensors], float],
    *,
    gains: Sequence[float] = GAINS,
) -> CodecSpec:
    """Return the spec with the gain of its ternary scales that changes a model's output least.

    This applies DAREx's output change to ternary codes: a few unlabelled batches tell how much of what was pruned the
    scale should make up for.

    Args:
        spec: at least one of its clauses must end with ``ternary``.
        layout: the layout of ``tensors``.
        tensors: the update, finite float32.
        distance: called with a decoded update; the change of the output from the exact update; lower is better.
        gains: gains to try; by default a grid that contains 1, which is least squares.

    Returns:
        The spec with the best of the gains in every ternary clause.

    Raises:
        ConfigError: no clause is ternary.
    """
    if not any(isinstance(c.code, SelectThenQuantize) and isinstance(c.code.quantize, Ternary) for c in spec.clauses):
        raise ConfigError("codec", str(spec), "must have a clause with ternary, to calibrate its scale")
    candidates = [_replace_gain(spec, gain) for gain in gains]
    distances = [distance(decode_sections(c, layout, encode_sections(c, layout, tensors))) for c in candidates]
    return candidates[int(np.argmin(distances))]


def _replace_gain(spec: CodecSpec, gain: float) -> CodecSpec:
    clauses = []
    for clause in spec.clauses:
        code = clause.code
        if isinstance(code, SelectThenQuantize) and isinstance(code.quantize, Ternary):
            code = replace(code, quantize=replace(code.quantize, gain=gain))
        clauses.append(replace(clause, code=code))
    return CodecSpec(tuple(clauses))


def _check_density(density: float) -> None:
    if not 0 < density <= 1:
        raise ConfigError("density", density, "must be above 0 and at most 1: the share that is kept")
