"""Entries ranked by a score that needs all sites: the largest scores of each site, without holding them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.merging.base import Floats
from fedcompress.merging.statistics import kept_of
from fedcompress.merging.updates import THREADS, Updates, list_blocks
from fedcompress.types import Array

Place = tuple[str, int, int]
Score = Callable[[str, Array], Floats]  # tensor's name and values, shape (sites, n), to scores of that shape
Made = TypeVar("Made", bound=np.generic)
_BINS = 1 << 16
_SIGN = np.uint64(1 << 63)


@dataclass(frozen=True)
class Group:
    """Tensors whose entries are ranked together."""

    names: tuple[str, ...]
    numel: int
    places: tuple[Place, ...]


def groups(updates: Updates, scope: str) -> list[Group]:
    """One for each tensor with the scope ``tensor``, one in all with ``global``."""
    places = list_blocks(updates.layout, updates.count)
    specs = updates.layout.tensors
    if scope == "global":
        return [Group(tuple(t.name for t in specs), updates.layout.numel, tuple(places))]
    of: dict[str, list[Place]] = {t.name: [] for t in specs}
    for place in places:
        of[place[0]].append(place)
    return [Group((t.name,), t.numel, tuple(of[t.name])) for t in specs]


def stacks(updates: Updates, group: Group, made: Callable[[str, Array], NDArray[Made]]) -> Iterator[NDArray[Made]]:
    """What ``made`` makes of each block of a group, in order, several at the same time."""

    def one(place: Place) -> NDArray[Made]:
        name, start, stop = place
        return made(name, np.stack([updates.read(i, name, start, stop) for i in range(updates.count)]))

    with ThreadPoolExecutor(THREADS) as pool:
        for at in range(0, len(group.places), THREADS):  # no more blocks in memory than threads
            yield from pool.map(one, group.places[at : at + THREADS])


def score_levels(updates: Updates, group: Group, share: float, score: Score) -> tuple[Floats, Floats]:
    """The ``kept_of(share, n)``-th largest score of the group, and the largest, of each site; each (sites,), exact.

    A group of one block is partitioned. Others are read four times: for histograms of the first 16 bits of float64
    in order, then of the next 16 of those that have the bits so far, and so on. Memory: 0.5 MB a site.
    """
    sites, count = updates.count, kept_of(share, group.numel)
    if not count:
        return np.full(sites, np.inf), np.zeros(sites)
    if len(group.places) == 1:
        found = next(stacks(updates, group, score))
        ordered = np.partition(found, found.shape[1] - count, axis=1)
        return ordered[:, found.shape[1] - count].copy(), found.max(axis=1)
    prefix, left, top = np.zeros(sites, np.uint64), np.full(sites, count), np.full(sites, -np.inf)
    for shift in (48, 32, 16, 0):
        seen = np.zeros((sites, _BINS), np.int64)
        for found in stacks(updates, group, score):
            np.maximum(top, found.max(axis=1), out=top)
            for i, keys in enumerate(_keys(found)):
                inside = keys if shift == 48 else keys[keys >> np.uint64(shift + 16) == prefix[i]]
                digits = (inside >> np.uint64(shift)).astype(np.uint16)
                seen[i] += np.bincount(digits, minlength=_BINS)
        for i in range(sites):
            above = np.cumsum(seen[i][::-1])[::-1]  # entries whose digit is at least this
            digit = int(np.flatnonzero(above >= left[i])[-1])
            left[i] -= above[digit] - seen[i][digit]
            prefix[i] = prefix[i] << np.uint64(16) | np.uint64(digit)
    return _values(prefix), top


def _keys(values: Floats) -> NDArray[np.uint64]:
    """Integers in the order of float64 values."""
    bits = values.view(np.uint64)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _values(keys: NDArray[np.uint64]) -> Floats:
    """Inverse of ``_keys``."""
    return np.where(keys & _SIGN, keys ^ _SIGN, ~keys).view(np.float64)


def unit(values: Floats, low: Floats, high: Floats) -> Floats:
    """Rows moved from [low, high] to [0, 1], float64; rows without a range become 1."""
    span = high - low
    flat = span == 0
    moved: Floats = (values - low[:, None]) / np.where(flat, 1.0, span)[:, None]
    moved[flat] = 1.0
    return moved
