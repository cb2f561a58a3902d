"""Selection by magnitude."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.codecs.base import Indices, Shape
from fedcompress.codecs.entropy.positions import CodedPlaces
from fedcompress.errors import ConfigError
from fedcompress.types import Array

SCOPES = ("tensor", "global")
CHUNK = 1 << 16  # entries that are looked at together, so that they stay in the cache
PIECE, THREADS = 1 << 21, 4  # entries that a thread takes at a time
SAMPLE = 1 << 16  # entries that a first threshold is guessed from


@dataclass(frozen=True, kw_only=True)
class TopK(CodedPlaces):
    """Keep the ``ceil(density * n)`` entries of largest magnitude, exactly.

    ``scope="tensor"`` counts in each tensor (so that a tiny one keeps at least an entry),
    ``"global"`` over all tensors of the clause, as ComPEFT (arXiv:2311.13171, section 2.1)
    does. Equal magnitudes are kept in the order of their index, so that the choice does
    not depend on a sorting algorithm; the released ComPEFT code keeps all of them.
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
        """Positions in flat float32 vectors."""
        if self.scope == "global":
            return largest(values, kept_of(self.density, sum(v.size for v in values)))
        return [largest([v], kept_of(self.density, v.size))[0] for v in values]


def kept_of(density: float, size: int) -> int:
    """``ceil(density * size)``, at least 1 of a tensor that is not empty.

    Rounded before, since 0.07 * 100 is a little more than 7 in floating point.
    """
    return max(math.ceil(round(density * size, 6)), min(size, 1))


def largest(values: Sequence[Array], count: int) -> list[Indices]:
    """Positions of exactly ``min(count, n)`` largest magnitudes over all vectors; on ties the first one wins."""
    total = sum(v.size for v in values)
    if count >= total:
        return [np.arange(v.size) for v in values]
    if count <= 0:
        return [np.zeros(0, np.int64) for _ in values]
    floor = _guess(values, count, total)
    found, magnitudes = _at_least(values, floor)
    if sum(m.size for m in magnitudes) < count:
        found, magnitudes = _at_least(values, np.float32(0))
    flat = np.concatenate(magnitudes)
    threshold = np.partition(flat, flat.size - count)[flat.size - count]
    keep = flat > threshold
    ties = np.flatnonzero(flat == threshold)
    keep[ties[: count - int(np.count_nonzero(keep))]] = True
    ends = np.cumsum([m.size for m in magnitudes])[:-1]
    return [p[k] for p, k in zip(found, np.split(keep, ends), strict=True)]


def _guess(values: Sequence[Array], count: int, total: int) -> np.float32:
    """A magnitude that a little more than ``count`` entries reach, most likely; from every so many-th entry."""
    stride = total // SAMPLE
    if stride < 8:
        return np.float32(0)
    sample = np.abs(np.concatenate([v[::stride] for v in values]))
    wanted = int(1.02 * count / total * sample.size + 4 * math.sqrt(count / total * sample.size) + 8)
    if wanted >= sample.size:
        return np.float32(0)
    return np.float32(np.partition(sample, sample.size - wanted)[sample.size - wanted])


def _at_least(values: Sequence[Array], floor: np.float32) -> tuple[list[Indices], list[Array]]:
    """Positions and magnitudes of the entries that are not below ``floor``."""
    found = [_places(value, floor) for value in values]
    return found, [np.abs(value[places]) for value, places in zip(values, found, strict=True)]


def _places(value: Array, floor: np.float32) -> Indices:
    """Positions in one vector; long ones are shared out among a few threads, in order."""
    starts = range(0, value.size, PIECE)
    if len(starts) < 2:
        return _scan(value, 0, floor)
    with ThreadPoolExecutor(THREADS) as pool:
        return np.concatenate(list(pool.map(lambda at: _scan(value[at : at + PIECE], at, floor), starts)))


def _scan(value: Array, offset: int, floor: np.float32) -> Indices:
    places, buffer = [np.zeros(0, np.int64)], np.empty(min(CHUNK, value.size), np.float32)
    for at in range(0, value.size, CHUNK):
        part = np.abs(value[at : at + CHUNK], out=buffer[: min(CHUNK, value.size - at)])
        places.append(np.flatnonzero(part >= floor) + (offset + at))
    return np.concatenate(places)
