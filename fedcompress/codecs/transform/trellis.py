"""Quantizes by a trellis: two interleaved scalar quantizers, chosen entry by entry by a state machine.

Source: Marcellin and Fischer 1990 (trellis-coded quantization), in the form of the dependent quantization of Versatile
Video Coding (Schwarz et al. 2019, "Hybrid video coding with trellis-coded quantization"), with 8 states. In units of a
step, quantizer 0 has the points ``2k``, and quantizer 1 the points ``2k - sign(k)``; the parity of k leads to the next
state. The encoder finds the path of least ``distortion + lambda * bits`` (Viterbi). On a Gaussian source it comes
within 0.10 to 0.14 bits of the rate-distortion function; a uniform quantizer with ideal entropy coding within 0.26.

A *lane* is a run of at most ``SEGMENT`` values that starts in state 0. Lanes are independent, so that all of them take
each step together: arrays have the shape (steps, lanes). Here a step is also a position in a lane.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.transform.codebook import CLASSES, ESCAPE, LOG_STEP, OFFSETS, TABLES

Ints = NDArray[np.int64]
SEGMENT = 256  # entries of a lane, at most
STATES = 8
NEXT = np.array([[0, 2], [5, 7], [1, 3], [6, 4], [2, 0], [4, 6], [3, 1], [7, 5]], np.int64)  # [state, parity of k]
QUANTIZER = np.array([0, 1, 0, 1, 0, 1, 0, 1], np.int64)  # [state]
LAMBDA = 0.28  # distortion, in squared steps, that one bit is worth
MAX_CLASS = 60  # 14 octaves above the step
MAX_K = (1 << 22) - 1  # the largest magnitude of k; float32 still holds every point
_CHUNK = 4096  # lanes that are searched at a time


# The two ways into each state, shape (STATES, 2): the state that each comes from, and the parity that takes it.
_ORIGIN = np.array([[s for s in range(STATES) for p in (0, 1) if NEXT[s, p] == t] for t in range(STATES)])
_PARITY = np.array([[p for s in range(STATES) for p in (0, 1) if NEXT[s, p] == t] for t in range(STATES)])
# The branch of each way: 2 * quantizer + parity.
_BRANCH = 2 * QUANTIZER[_ORIGIN] + _PARITY


def count_low_bits(classes: Ints) -> Ints:
    """Return how many low bits of k are sent as they are: one for each octave, or part of one, beyond the codebook."""
    over: Ints = np.maximum(classes - (CLASSES - 1), 0)
    return -(-over // LOG_STEP)


def find_table(classes: Ints) -> Ints:
    """Return the class whose table codes what is left of k without its low bits."""
    return classes - LOG_STEP * count_low_bits(classes)


def points(k: Ints, quantizer: Ints, classes: Ints) -> NDArray[np.float32]:
    """Return the reconstruction points of signed k, exact on every machine.

    Where cells are wide, without low bits, the codebook moves the points towards the mean of their cells.

    Args:
        k: signed, of any shape.
        quantizer: 0 or 1 for each entry, of the shape of ``k``.
        classes: of each lane; broadcast against ``k``.

    Returns:
        Points in units of the step, float32, of the shape of ``k``.
    """
    magnitude = np.abs(k)
    is_wide = count_low_bits(classes) == 0
    offset = OFFSETS[find_table(classes), quantizer, np.minimum(magnitude, 2)] * is_wide
    value = (2 * magnitude - (quantizer & (magnitude > 0))).astype(np.float32) + offset.astype(np.float32)
    signed: NDArray[np.float32] = np.where(k < 0, -value, value).astype(np.float32)
    return signed


@dataclass(frozen=True)
class Path:
    """Holds what the search chose for each entry, both of shape (steps, lanes).

    Args:
        k: signed multiples, int64.
        quantizer: 0 or 1, int64.
    """

    k: Ints
    quantizer: Ints


def _costs() -> NDArray[np.float64]:
    """Return the bits of each magnitude with its sign, shape (CLASSES, 2, ESCAPE + 1)."""
    bits: NDArray[np.float64] = np.log2(TABLES.sum(-1, keepdims=True) / TABLES)
    bits[..., 1:] += 1
    return bits


def search(values: NDArray[np.float64], lengths: Ints, classes: Ints, costs: NDArray[np.float64] | None = None) -> Path:
    """Find the path of least cost of each lane.

    Args:
        values: in units of the step, float64, shape (steps, lanes); lanes are sorted, longest first.
        lengths: entries of each lane, shape (lanes,).
        classes: of each lane, shape (lanes,).
        costs: bits of each magnitude, shape (CLASSES, 2, ESCAPE + 1); None takes the codebook's own.

    Returns:
        The path; entries beyond the length of their lane are 0.
    """
    costs = _costs() if costs is None else costs
    k, quantizer = np.zeros(values.shape, np.int64), np.zeros(values.shape, np.int64)
    for at in range(0, values.shape[1], _CHUNK):
        part = slice(at, at + _CHUNK)
        steps = int(lengths[part].max(initial=0))
        branch_cost, branch_k = _evaluate_branches(np.abs(values[:steps, part]), classes[part], costs)
        active = (lengths[part][None, :] > np.arange(steps)[:, None]).sum(1)
        is_second, final = _search_forward(branch_cost, active)
        k[:steps, part], quantizer[:steps, part] = _trace_back(is_second, final, branch_k, active)
    return Path(np.where(values < 0, -k, k), quantizer)


def _evaluate_branches(
    values: NDArray[np.float64], classes: Ints, costs: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return the least cost of each quantizer and parity, and the k that has it, both of shape (steps, 4, lanes)."""
    low_bits, table = count_low_bits(classes), find_table(classes)
    best_cost = np.empty((values.shape[0], 4, values.shape[1]), np.float32)
    best_k = np.empty(best_cost.shape, np.int32)
    for branch in range(4):
        quantizer, parity = divmod(branch, 2)
        below = 2 * np.floor(((values + quantizer) / 2 - parity) / 2).astype(np.int64) + parity
        low = np.clip(below, parity, MAX_K - 3 + parity)  # MAX_K is odd
        options = [low, low + 2] if parity else [low, low + 2, np.zeros_like(low)]
        for number, k in enumerate(options):
            point = 2 * k - (quantizer & (k > 0))
            symbol = np.minimum(k >> low_bits, ESCAPE)
            bits = costs[table, quantizer, symbol] + low_bits
            cost = ((values - point) ** 2 + LAMBDA * bits).astype(np.float32)
            is_better = cost < best_cost[:, branch] if number else np.ones(cost.shape, np.bool_)
            best_cost[:, branch] = np.where(is_better, cost, best_cost[:, branch])
            best_k[:, branch] = np.where(is_better, k, best_k[:, branch])
    return best_cost, best_k


def _search_forward(branch_cost: NDArray[np.float32], active: Ints) -> tuple[NDArray[np.bool_], Ints]:
    """Find the best way into each state at each step.

    Args:
        branch_cost: shape (steps, 4, lanes).
        active: how many lanes are as long as each step, shape (steps,).

    Returns:
        Whether the second way is the better one, shape (steps, STATES, lanes), and the best last state of each lane.
    """
    steps, _, lanes = branch_cost.shape
    total = np.full((STATES, lanes), np.inf, np.float32)
    total[0] = 0
    is_second = np.zeros((steps, STATES, lanes), np.bool_)
    for i in range(steps):
        n = active[i]
        before = total[:, :n]
        cost = branch_cost[i, :, :n]
        first = before[_ORIGIN[:, 0]] + cost[_BRANCH[:, 0]]
        second = before[_ORIGIN[:, 1]] + cost[_BRANCH[:, 1]]
        np.less(second, first, out=is_second[i, :, :n])
        np.minimum(first, second, out=first)
        total[:, :n] = first - first.min(0)  # only differences matter, and float32 keeps small ones
    return is_second, total.argmin(0)


def _trace_back(
    is_second: NDArray[np.bool_], final: Ints, branch_k: NDArray[np.int32], active: Ints
) -> tuple[Ints, Ints]:
    """Return magnitude and quantizer along the best path, which is followed from its end; shape (steps, lanes)."""
    steps, _, lanes = is_second.shape
    state, lane = final.copy(), np.arange(lanes)
    k, quantizer = np.zeros((steps, lanes), np.int64), np.zeros((steps, lanes), np.int64)
    for i in range(steps - 1, -1, -1):
        n = active[i]
        after = state[:n]
        way = is_second[i, after, lane[:n]].astype(np.int64)
        k[i, :n] = branch_k[i, _BRANCH[after, way], lane[:n]]
        state[:n] = _ORIGIN[after, way]
        quantizer[i, :n] = QUANTIZER[state[:n]]
    return k, quantizer
