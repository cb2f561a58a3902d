"""Trellis-coded quantization: two interleaved scalar quantizers, chosen by a state machine.

Source: Marcellin and Fischer 1990 (trellis-coded quantization), in the form of the dependent
quantization of Versatile Video Coding (Schwarz et al. 2019, "Hybrid video coding with
trellis-coded quantization"), with 8 states. In units of a step, quantizer 0 has the points
``2k``, quantizer 1 the points ``2k - sign(k)``; the parity of k leads to the next state. The
encoder finds the path of least ``distortion + lambda * bits`` (Viterbi). On a Gaussian
source it comes within 0.10 to 0.14 bits of the rate-distortion function, a uniform quantizer
with ideal entropy coding within 0.26.

A *lane* is a run of at most ``SEGMENT`` values that starts in state 0; lanes are independent,
so that all of them take each step together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.transform.codebook import CLASSES, ESCAPE, LOG_STEP, OFFSETS, TABLES

SEGMENT = 256
STATES = 8
NEXT = np.array([[0, 2], [5, 7], [1, 3], [6, 4], [2, 0], [4, 6], [3, 1], [7, 5]], np.int64)  # [state, parity]
QUANTIZER = np.array([0, 1, 0, 1, 0, 1, 0, 1], np.int64)  # [state]
LAMBDA = 0.28  # distortion, in squared steps, that one bit is worth
MAX_CLASS = 60  # 14 octaves above the step
MAX_K = (1 << 22) - 1  # float32 holds every point
_CHUNK = 4096  # lanes that are searched at a time
Ints = NDArray[np.int64]

# The two ways into each state: origin and branch, where branch = 2 * quantizer + parity.
_ORIGIN = np.array([[s for s in range(STATES) for p in (0, 1) if NEXT[s, p] == t] for t in range(STATES)])
_PARITY = np.array([[p for s in range(STATES) for p in (0, 1) if NEXT[s, p] == t] for t in range(STATES)])
_BRANCH = 2 * QUANTIZER[_ORIGIN] + _PARITY


def shift_of(classes: Ints) -> Ints:
    """Low bits of k that are sent as they are: beyond the codebook each octave adds one."""
    over: Ints = np.maximum(classes - (CLASSES - 1), 0)
    return -(-over // LOG_STEP)


def table_of(classes: Ints) -> Ints:
    """Index into the codebook."""
    return classes - LOG_STEP * shift_of(classes)


def points(k: Ints, quantizer: Ints, classes: Ints) -> NDArray[np.float32]:
    """Reconstruction of signed k in units of the step, float32, exact on every machine.

    The codebook moves the points towards the mean of their cells where those are wide.
    """
    magnitude = np.abs(k)
    wide = shift_of(classes) == 0
    offset = OFFSETS[table_of(classes), quantizer, np.minimum(magnitude, 2)] * wide
    value = (2 * magnitude - (quantizer & (magnitude > 0))).astype(np.float32) + offset.astype(np.float32)
    signed: NDArray[np.float32] = np.where(k < 0, -value, value).astype(np.float32)
    return signed


@dataclass(frozen=True)
class Path:
    """What the search chose: signed k, and the quantizer of each entry; both of shape (steps, lanes)."""

    k: Ints
    quantizer: Ints


def _costs() -> NDArray[np.float64]:
    """Bits of each magnitude with its sign, shape (tables, 2, ESCAPE + 1)."""
    bits: NDArray[np.float64] = np.log2(TABLES.sum(-1, keepdims=True) / TABLES)
    bits[..., 1:] += 1
    return bits


def search(values: NDArray[np.float64], lengths: Ints, classes: Ints, costs: NDArray[np.float64] | None = None) -> Path:
    """The path of least cost of each lane.

    Args:
        values: in units of the step, shape (steps, lanes); lanes are sorted, longest first.
        lengths: entries of each lane.
        classes: model of each lane.
        costs: bits by table, quantizer and magnitude; the codebook's own if left out.
    """
    costs = _costs() if costs is None else costs
    k, quantizer = np.zeros(values.shape, np.int64), np.zeros(values.shape, np.int64)
    for at in range(0, values.shape[1], _CHUNK):
        part = slice(at, at + _CHUNK)
        steps = int(lengths[part].max(initial=0))
        branch_cost, branch_k = _branches(np.abs(values[:steps, part]), classes[part], costs)
        active = (lengths[part][None, :] > np.arange(steps)[:, None]).sum(1)
        taken, final = _forward(branch_cost, active)
        k[:steps, part], quantizer[:steps, part] = _back(taken, final, branch_k, active)
    return Path(np.where(values < 0, -k, k), quantizer)


def _branches(
    values: NDArray[np.float64], classes: Ints, costs: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Least cost, and its k, for each quantizer and parity: both of shape (steps, 4, lanes)."""
    shift, table = shift_of(classes), table_of(classes)
    best = np.empty((values.shape[0], 4, values.shape[1]), np.float32)
    chosen = np.empty(best.shape, np.int32)
    for branch in range(4):
        quantizer, parity = divmod(branch, 2)
        below = 2 * np.floor(((values + quantizer) / 2 - parity) / 2).astype(np.int64) + parity
        low = np.clip(below, parity, MAX_K - 3 + parity)  # MAX_K is odd
        options = [low, low + 2] if parity else [low, low + 2, np.zeros_like(low)]
        for number, k in enumerate(options):
            point = 2 * k - (quantizer & (k > 0))
            symbol = np.minimum(k >> shift, ESCAPE)
            cost = ((values - point) ** 2 + LAMBDA * (costs[table, quantizer, symbol] + shift)).astype(np.float32)
            better = cost < best[:, branch] if number else np.ones(cost.shape, np.bool_)
            best[:, branch] = np.where(better, cost, best[:, branch])
            chosen[:, branch] = np.where(better, k, chosen[:, branch])
    return best, chosen


def _forward(branch_cost: NDArray[np.float32], active: Ints) -> tuple[NDArray[np.bool_], Ints]:
    """Which way led into each state, shape (steps, STATES, lanes), and the best last state."""
    steps, _, lanes = branch_cost.shape
    total = np.full((STATES, lanes), np.inf, np.float32)
    total[0] = 0
    taken = np.zeros((steps, STATES, lanes), np.bool_)
    for i in range(steps):
        n = active[i]
        held = total[:, :n]
        cost = branch_cost[i, :, :n]
        first = held[_ORIGIN[:, 0]] + cost[_BRANCH[:, 0]]
        second = held[_ORIGIN[:, 1]] + cost[_BRANCH[:, 1]]
        np.less(second, first, out=taken[i, :, :n])
        np.minimum(first, second, out=first)
        total[:, :n] = first - first.min(0)
    return taken, total.argmin(0)


def _back(taken: NDArray[np.bool_], final: Ints, branch_k: NDArray[np.int32], active: Ints) -> tuple[Ints, Ints]:
    """Magnitude and quantizer along the best path, from its end."""
    steps, _, lanes = taken.shape
    state, lane = final.copy(), np.arange(lanes)
    k, quantizer = np.zeros((steps, lanes), np.int64), np.zeros((steps, lanes), np.int64)
    for i in range(steps - 1, -1, -1):
        n = active[i]
        here, where = state[:n], lane[:n]
        way = taken[i, here, where].astype(np.int64)
        k[i, :n] = branch_k[i, _BRANCH[here, way], where]
        state[:n] = _ORIGIN[here, way]
        quantizer[i, :n] = QUANTIZER[state[:n]]
    return k, quantizer
