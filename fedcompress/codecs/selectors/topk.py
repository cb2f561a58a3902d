"""Selects a fixed share of entries by magnitude."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.codecs.base import Indices, Shape
from fedcompress.codecs.entropy.positions import CodedPositions
from fedcompress.errors import ConfigError
from fedcompress.types import Array

SCOPES = ("tensor", "global")
CHUNK = 1 << 16  # entries that are looked at together, so that they stay in the cache
PIECE = 1 << 21  # entries that a thread takes at a time
THREADS = 4
SAMPLE = 1 << 16  # entries that the threshold is guessed from


@dataclass(frozen=True, kw_only=True)
class TopK(CodedPositions):
    """Keeps exactly the ``ceil(density * n)`` entries of largest magnitude.

    Of equal magnitudes those with the lowest index are kept, so that the choice does not depend on a sorting
    algorithm; the released ComPEFT code keeps all of them.

    Args:
        density: the share that is kept, above 0 and at most 1.
        scope: ``tensor`` counts in each tensor, so that a tiny one keeps at least one entry; ``global`` counts over
            all tensors of the clause together, as ComPEFT (arXiv:2311.13171, section 2.1) does.

    >>> from fedcompress.codecs import preview
    >>> print(preview("topk(density=0.25)|bf16", [3, -1, 0, 2, 0, 0.5, -4, 1]))
    9 bytes, relative squared error 0.2: [3, 0, 0, 0, 0, 0, -4, 0]
    """

    name: ClassVar[str] = "topk"
    density: float
    scope: str = "tensor"

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ConfigError("codec.topk.density", self.density, "must be above 0 and at most 1")
        if self.scope not in SCOPES:
            raise ConfigError("codec.topk.scope", self.scope, f"one of {list(SCOPES)}")

    def select(self, values: Sequence[Array], shapes: Sequence[Shape] = (), seed: int = 0) -> list[Indices]:
        """Choose the largest entries of each vector, or of all together."""
        if self.scope == "global":
            return find_largest(values, count_kept(self.density, sum(v.size for v in values)))
        return [find_largest([v], count_kept(self.density, v.size))[0] for v in values]


def count_kept(density: float, size: int) -> int:
    """Return ``ceil(density * size)``, and at least 1 for a tensor that is not empty.

    The product is rounded to 6 decimals before, since 0.07 * 100 is a little more than 7 in floating point.
    """
    return max(math.ceil(round(density * size, 6)), min(size, 1))


def find_largest(values: Sequence[Array], count: int) -> list[Indices]:
    """Return the positions, ascending, of the ``count`` largest magnitudes over all vectors together.

    Exactly ``min(count, n)`` positions are returned; of equal magnitudes the first ones are taken.
    """
    total = sum(v.size for v in values)
    if count >= total:
        return [np.arange(v.size) for v in values]
    if count <= 0:
        return [np.zeros(0, np.int64) for _ in values]
    floor = _guess_threshold(values, count, total)
    candidates, magnitudes = _find_at_least(values, floor)
    if sum(m.size for m in magnitudes) < count:
        candidates, magnitudes = _find_at_least(values, np.float32(0))
    flat = np.concatenate(magnitudes)
    threshold = np.partition(flat, flat.size - count)[flat.size - count]
    keep = flat > threshold
    ties = np.flatnonzero(flat == threshold)
    keep[ties[: count - int(np.count_nonzero(keep))]] = True
    ends = np.cumsum([m.size for m in magnitudes])[:-1]
    return [p[k] for p, k in zip(candidates, np.split(keep, ends), strict=True)]


def _guess_threshold(values: Sequence[Array], count: int, total: int) -> np.float32:
    """Guess, from an evenly spaced sample, a magnitude that a little more than ``count`` entries reach.

    The guess may be too high, rarely; 0 is returned where a sample would not save time.
    """
    stride = total // SAMPLE
    if stride < 8:
        return np.float32(0)
    sample = np.abs(np.concatenate([v[::stride] for v in values]))
    expected = count / total * sample.size
    # A margin of 2 % and of four standard deviations, so that the guess is rarely too high.
    rank = int(1.02 * count / total * sample.size + 4 * math.sqrt(expected) + 8)
    if rank >= sample.size:
        return np.float32(0)
    return np.float32(np.partition(sample, sample.size - rank)[sample.size - rank])


def _find_at_least(values: Sequence[Array], floor: np.float32) -> tuple[list[Indices], list[Array]]:
    """Return positions and magnitudes of the entries whose magnitude is at least ``floor``."""
    positions = [_find_in_one(value, floor) for value in values]
    return positions, [np.abs(value[p]) for value, p in zip(values, positions, strict=True)]


def _find_in_one(value: Array, floor: np.float32) -> Indices:
    """Return such positions in one vector; a few threads share a long one."""
    starts = range(0, value.size, PIECE)
    if len(starts) < 2:
        return _scan(value, 0, floor)
    with ThreadPoolExecutor(THREADS) as pool:
        return np.concatenate(list(pool.map(lambda at: _scan(value[at : at + PIECE], at, floor), starts)))


def _scan(value: Array, offset: int, floor: np.float32) -> Indices:
    """Return such positions in one piece of a vector, plus ``offset``."""
    positions = [np.zeros(0, np.int64)]
    buffer = np.empty(min(CHUNK, value.size), np.float32)
    for at in range(0, value.size, CHUNK):
        part = np.abs(value[at : at + CHUNK], out=buffer[: min(CHUNK, value.size - at)])
        positions.append(np.flatnonzero(part >= floor) + (offset + at))
    return np.concatenate(positions)
