"""Entries are ranked here by a score that needs all sites, without holding the scores of a whole update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.merging.base import Floats
from fedcompress.merging.statistics import count_kept
from fedcompress.merging.updates import THREADS, Updates, list_blocks, read_block
from fedcompress.types import Array

BlockPlace = tuple[str, int, int]  # name of the tensor, first entry, entry behind the last
Score = Callable[[str, Array], Floats]  # from a tensor's name and values, shape (sites, n), to scores of that shape
Scalar = TypeVar("Scalar", bound=np.generic)
_BINS = 1 << 16  # bins of a histogram over 16 bits
_SIGN = np.uint64(1 << 63)  # sign bit of float64


@dataclass(frozen=True)
class Group:
    """A group names the tensors whose entries are ranked together."""

    names: tuple[str, ...]
    numel: int  # entries of all of them, of one site
    places: tuple[BlockPlace, ...]  # their blocks, in order


def list_groups(updates: Updates, scope: str) -> list[Group]:
    """List one group for each tensor with the scope ``tensor``, and one group of all tensors with ``global``."""
    places = list_blocks(updates.layout, updates.count)
    specs = updates.layout.tensors
    if scope == "global":
        return [Group(tuple(t.name for t in specs), updates.layout.numel, tuple(places))]
    by_tensor: dict[str, list[BlockPlace]] = {t.name: [] for t in specs}
    for place in places:
        by_tensor[place[0]].append(place)
    return [Group((t.name,), t.numel, tuple(by_tensor[t.name])) for t in specs]


def map_blocks(
    updates: Updates, group: Group, function: Callable[[str, Array], NDArray[Scalar]]
) -> Iterator[NDArray[Scalar]]:
    """Call a function for each block of a group, for several blocks at the same time.

    Args:
        updates: updates of all sites.
        group: whose blocks are read.
        function: called with the name of the tensor and the block's values, shape (sites, n), float32.

    Yields:
        The results, in the order of the blocks. No more blocks are in memory than there are threads.
    """

    def call(place: BlockPlace) -> NDArray[Scalar]:
        return function(place[0], read_block(updates, *place))

    with ThreadPoolExecutor(THREADS) as pool:
        for first in range(0, len(group.places), THREADS):
            yield from pool.map(call, group.places[first : first + THREADS])


def score_levels(updates: Updates, group: Group, share: float, score: Score) -> tuple[Floats, Floats]:
    """Find the least score that counts when the highest share of each site's scores does.

    Both results are exact. The scores of a group of one block are partitioned in memory. Those of larger groups are
    computed four times: for a histogram of the first 16 bits of float64 (mapped to integers of the same order), then
    for one of the next 16 bits of those scores that begin with the bits that were found, and so on. Memory: 0.5 MB for
    each site.

    Args:
        updates: updates of all sites.
        group: tensors whose entries are ranked together.
        share: share of the entries that count, above 0, at most 1.
        score: how a block is scored.

    Returns:
        The ``count_kept(share, n)``-th largest score of each site, shape (sites,), and the largest score of each site,
        shape (sites,); infinity and 0 for a group without entries.
    """
    sites = updates.count
    count = count_kept(share, group.numel)
    if not count:
        return np.full(sites, np.inf), np.zeros(sites)
    if len(group.places) == 1:
        scores = next(map_blocks(updates, group, score))
        ordered = np.partition(scores, scores.shape[1] - count, axis=1)
        return ordered[:, scores.shape[1] - count].copy(), scores.max(axis=1)
    prefix = np.zeros(sites, np.uint64)  # the bits that were found so far
    remaining = np.full(sites, count)  # rank of the score among those that begin with the prefix
    top = np.full(sites, -np.inf)
    for shift in (48, 32, 16, 0):
        histogram = np.zeros((sites, _BINS), np.int64)
        for scores in map_blocks(updates, group, score):
            np.maximum(top, scores.max(axis=1), out=top)
            for site, keys in enumerate(_to_ordered_integers(scores)):
                inside = keys if shift == 48 else keys[keys >> np.uint64(shift + 16) == prefix[site]]
                digits = (inside >> np.uint64(shift)).astype(np.uint16)
                histogram[site] += np.bincount(digits, minlength=_BINS)
        for site in range(sites):
            above = np.cumsum(histogram[site][::-1])[::-1]  # scores whose digit is at least this
            digit = int(np.flatnonzero(above >= remaining[site])[-1])
            remaining[site] -= above[digit] - histogram[site][digit]
            prefix[site] = prefix[site] << np.uint64(16) | np.uint64(digit)
    return _from_ordered_integers(prefix), top


def _to_ordered_integers(values: Floats) -> NDArray[np.uint64]:
    """Map float64 values to integers of the same order."""
    bits = values.view(np.uint64)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _from_ordered_integers(keys: NDArray[np.uint64]) -> Floats:
    """Invert ``_to_ordered_integers``."""
    return np.where(keys & _SIGN, keys ^ _SIGN, ~keys).view(np.float64)


def scale_to_unit(values: Floats, low: Floats, high: Floats) -> Floats:
    """Map each row linearly from [low, high] to [0, 1].

    Args:
        values: shape (sites, n), float64.
        low: shape (sites,).
        high: shape (sites,).

    Returns:
        Shape (sites, n), float64. Rows without a range, where low is high, become 1.
    """
    span = high - low
    flat = span == 0
    scaled: Floats = (values - low[:, None]) / np.where(flat, 1.0, span)[:, None]
    scaled[flat] = 1.0
    return scaled


def mean_by_counts(counts: Iterable[Floats], values: Floats | Array) -> Floats:
    """Average the sites entry by entry, where an entry counts by its score.

    Args:
        counts: for each site how much each entry counts, shape (n,), float64: its score times the site's weight.
        values: shape (sites, n).

    Returns:
        Shape (n,), float64; 0 where nothing counts.
    """
    total = np.zeros(values.shape[1])
    share = np.zeros(values.shape[1])
    for count, row in zip(counts, values, strict=True):
        total += count * row
        share += count
    return np.divide(total, share, out=np.zeros_like(total), where=share > 0)
