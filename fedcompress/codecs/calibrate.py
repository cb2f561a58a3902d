"""Scales that are chosen by what a model puts out: for ternary codes, and the q of DAREx.

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

GAINS: tuple[float, ...] = (0.5, 0.6, 0.7, 0.84, 1.0, 1.19, 1.41, 1.68, 2.0, 2.4, 2.8, 3.4, 4.0)
Floats = NDArray[np.float64]
PATIENCE = 4  # steps of the fine grid without a gain, as in DAREx's code
TURNED = 0.8  # share of rows whose objective has passed its least, where the analytic search stops


def find_q_by_score(score: Callable[[float], float], density: float, *, step: float = 0.1) -> float:
    """The q of DAREx-q with the best validation score.

    DAREx (arXiv:2410.09344, section 4.1): a coarse grid from the keep rate to 1, then a fine one
    up and down from its best, each way ending after four steps without a gain. The released code's
    fine grid goes one way, and may leave the range; this one does not.

    Args:
        score: higher is better; called with q.
        density: the keep rate, the lowest q.
        step: of the coarse grid; the fine one has a tenth.
    """
    _check_density(density)
    coarse = [min(density + i * step, 1.0) for i in range(math.ceil((1 - density) / step) + 1)]
    scores = {q: score(q) for q in dict.fromkeys(coarse)}
    best = max(scores, key=lambda q: scores[q])
    for way in (1, -1):
        without = 0
        for i in range(1, 10):
            q = best + way * i * step / 10
            if not density <= q <= 1 or without == PATIENCE:
                break
            scores[q] = score(q)
            without = 0 if scores[q] >= max(scores.values()) else without + 1
    return max(scores, key=lambda q: scores[q])


def find_q_by_output(
    distance: Callable[[float, int], float], density: float, *, seeds: int = 4, step: float = 0.1
) -> float:
    """The q that changes a model's output least on unlabelled data.

    DAREx (section 4.2): the mean over mask seeds of ``distance(q, seed)``, say the mean change of the last
    hidden state, without the seed that is farthest from the others' median if there are more than two.
    """

    def score(q: float) -> float:
        found = np.array([distance(q, s) for s in range(seeds)])
        if seeds > 2:
            found = np.delete(found, int(np.argmax(np.abs(found - np.median(found)))))
        return -float(found.mean())

    return find_q_by_score(score, density, step=step)


def find_q_by_bound(
    delta: Array, mean_inputs: Array, density: float, *, eta: float = 1.0, gamma: float = 0.95
) -> float:
    """The q of one linear layer from a bound on its output change; needs no labels and no search on a model.

    DAREx (section 4.3, theorem 3.1), as its code has it: per output row, the q in [density, 0.999] with the least
    ``|eta (1 - density / q) sum c + eta^2 Phi sum c^2 / (4 q^2) + ln(2 / (1 - gamma))|``, where
    ``c = delta * mean_inputs``; the grid ends where 80 % of the rows have passed their least; the mean of rows.

    Args:
        delta: (outputs, inputs).
        mean_inputs: (inputs,), mean input of the layer on a few rows of data.
        density: keep rate, p in ``Phi(p) = (1 - 2 p') / ln((1 - p') / p')`` with the drop rate p' = 1 - density.
        eta: of the bound; searched on data by the authors, about 0.3 to 1.
        gamma: confidence.
    """
    _check_density(density)
    drop = 1 - density
    phi = 0.5 if abs(drop - 0.5) < 1e-9 else (1 - 2 * drop) / math.log((1 - drop) / drop)
    parts = delta.astype(np.float64) * mean_inputs.astype(np.float64)
    first, second = parts.sum(1), np.square(parts).sum(1)
    least = np.full(first.size, np.inf)
    chosen, turned = np.full(first.size, density), np.zeros(first.size, np.bool_)
    for q in np.arange(density, 1.0, 1e-3):
        value = np.abs(
            eta * (1 - density / q) * first + eta**2 * phi * second / (4 * q * q) + math.log(2 / (1 - gamma))
        )
        better = value < least
        chosen, least = np.where(better, q, chosen), np.minimum(value, least)
        turned |= ~better
        if turned.mean() >= TURNED:
            break
    return float(chosen.mean())


def learn_q(
    gradient: Callable[[Mapping[str, float]], Mapping[str, float]],
    layers: Sequence[str],
    density: float,
    *,
    steps: int = 200,
    lr: float = 1e-2,
) -> dict[str, float]:
    """One q for each layer by AdamW on the caller's loss, as DAREx's per-layer option.

    Learning rate 1e-2, cosine over 200 steps, no decay. ``gradient`` gets all q and returns the
    derivative of the loss (in DAREx, the squared change of the five largest logits) by each.
    """
    _check_density(density)
    q = np.full(len(layers), max(density, 1e-3))
    first, second = np.zeros(q.size), np.zeros(q.size)
    for t in range(1, steps + 1):
        found = gradient(dict(zip(layers, q.tolist(), strict=True)))
        grad = np.array([found[name] for name in layers])
        first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
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
    """The spec with the gain of its ternary scales that changes a model's output least.

    DAREx's output change, applied to ternary codes: a few unlabelled batches tell how much of
    what was pruned the scale should make up for. The grid contains 1, least squares.

    Args:
        spec: at least one of its clauses ends with ``ternary``.
        layout: of ``tensors``.
        tensors: the update.
        distance: change of the output between the exact update and a decoded one; lower is better.
        gains: what to try.

    Raises:
        ConfigError: no clause is ternary.
    """
    if not any(isinstance(c.code, SelectThenQuantize) and isinstance(c.code.quantize, Ternary) for c in spec.clauses):
        raise ConfigError("codec", str(spec), "must have a clause with ternary, to calibrate its scale")

    def with_gain(gain: float) -> CodecSpec:
        clauses = []
        for clause in spec.clauses:
            code = clause.code
            if isinstance(code, SelectThenQuantize) and isinstance(code.quantize, Ternary):
                code = replace(code, quantize=replace(code.quantize, gain=gain))
            clauses.append(replace(clause, code=code))
        return CodecSpec(tuple(clauses))

    options = [with_gain(g) for g in gains]
    found = [distance(decode_sections(o, layout, encode_sections(o, layout, tensors))) for o in options]
    return options[int(np.argmin(found))]


def _check_density(density: float) -> None:
    if not 0 < density <= 1:
        raise ConfigError("density", density, "must be above 0 and at most 1: the share that is kept")
