"""Share rows among sites as federations differ: by a key, by skewed classes, by skewed sizes, or evenly.

Dirichlet over classes is how Hsu et al. 2019 (arXiv:1909.06335) make sites differ, drawn per class over sites as
Li et al. 2021 (arXiv:2102.02079) do, whose quantity skew is the third way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from fedcompress.errors import ConfigError

HOWS = ("iid", "key", "dirichlet", "quantity")
DRAWS = 1000  # of a Dirichlet distribution until every site has its least


@dataclass(frozen=True, kw_only=True)
class Partition:
    """How rows are shared.

    Args:
        sites: how many.
        how: ``iid``, sizes as equal as can be; ``key``, all rows of a key at one site, keys in turn to the site with
            the fewest rows; ``dirichlet``, each key's rows by a draw of its own; ``quantity``, iid rows in sizes of
            one draw.
        alpha: of the Dirichlet distributions; small for sites that differ, large for sites that do not.
        least: rows that every site gets.
        seed: equal seeds give equal shares.
    """

    sites: int
    how: str = "iid"
    alpha: float = 0.5
    least: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sites < 1:
            raise ConfigError("sites", self.sites, "must be at least 1")
        if self.how not in HOWS:
            raise ConfigError("how", self.how, f"must be one of {list(HOWS)}")
        if not 0 < self.alpha < math.inf:
            raise ConfigError("alpha", self.alpha, "must be above 0 and finite")
        for name in ("least", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(name, getattr(self, name), "must be at least 0")


def partition(count: int, how: Partition, keys: Sequence[Hashable] | None = None) -> list[list[int]]:
    """Row numbers of each site, ascending; every row is at exactly one.

    Args:
        count: rows.
        how: the way.
        keys: of each row, for ``key`` and ``dirichlet``.

    Raises:
        ConfigError: fewer rows than the sites' least; keys that are absent, too few, or cannot give the least.
    """
    if count < how.sites * how.least:
        raise ConfigError("rows", count, f"must be at least {how.sites * how.least}, {how.least} for each site")
    if how.how in ("key", "dirichlet") and (keys is None or len(keys) != count):
        found = "none" if keys is None else len(keys)
        raise ConfigError("keys", found, f"must be one for each of {count} rows with {how.how}")
    random = np.random.Generator(np.random.Philox(how.seed))
    match how.how:
        case "key":
            shares = _by_key(count, how, _groups(keys or []))
        case "dirichlet":
            groups = _groups(keys or [])
            shares = _drawn(how, lambda: _by_class(groups, how, random))
        case "quantity":
            shares = _drawn(how, lambda: _by_size(count, how, random))
        case _:
            shares = [np.sort(part) for part in np.array_split(random.permutation(count), how.sites)]
    return [sorted(int(row) for row in share) for share in shares]


Shares = Sequence[np.typing.NDArray[np.int64]]


def _groups(keys: Sequence[Hashable]) -> list[np.typing.NDArray[np.int64]]:
    """Rows of each key, keys in the order in which they first appear."""
    found: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        found.setdefault(key, []).append(row)
    return [np.asarray(rows, np.int64) for rows in found.values()]


def _by_key(count: int, how: Partition, groups: Shares) -> Shares:
    """The largest key first, to the site with the fewest rows."""
    shares: list[list[np.typing.NDArray[np.int64]]] = [[] for _ in range(how.sites)]
    sizes = [0] * how.sites
    for rows in sorted(groups, key=len, reverse=True):
        site = sizes.index(min(sizes))
        shares[site].append(rows)
        sizes[site] += len(rows)
    if min(sizes) < how.least:
        rule = f"must give each of {how.sites} sites {how.least} rows: the smallest would have {min(sizes)}"
        raise ConfigError("keys", f"{len(groups)} distinct", rule)
    return [np.concatenate(share) if share else np.empty(0, np.int64) for share in shares]


def _by_class(groups: Shares, how: Partition, random: np.random.Generator) -> Shares:
    shares: list[list[np.typing.NDArray[np.int64]]] = [[] for _ in range(how.sites)]
    for rows in groups:
        mixed = random.permutation(rows)
        for site, part in enumerate(_cut(mixed, how, random)):
            shares[site].append(part)
    return [np.concatenate(share) for share in shares] if groups else [np.empty(0, np.int64)] * how.sites


def _by_size(count: int, how: Partition, random: np.random.Generator) -> Shares:
    return _cut(random.permutation(count), how, random)


def _cut(rows: np.typing.NDArray[np.int64], how: Partition, random: np.random.Generator) -> Shares:
    """By one draw of shares; where the cuts fall is rounded, so that no row is lost."""
    parts = random.dirichlet(np.full(how.sites, how.alpha))
    if not np.isfinite(parts).all():  # all gammas underflowed: one site has everything
        parts = np.eye(how.sites)[random.integers(how.sites)]
    ends = np.rint(np.cumsum(parts)[:-1] * len(rows)).astype(np.int64)
    return np.split(rows, ends)


def _drawn(how: Partition, draw: Callable[[], Shares]) -> Shares:
    """Draw until every site has its least, which keeps the distribution given that; then move rows."""
    for _ in range(DRAWS):
        shares = draw()
        if min(len(share) for share in shares) >= how.least:
            return shares
    return _topped(shares, how.least)


def _topped(shares: Shares, least: int) -> Shares:
    """The rows that sites lack, one at a time from the largest."""
    lists = [share.tolist() for share in shares]
    for share in lists:
        while len(share) < least:
            share.append(max(lists, key=len).pop())
    return [np.asarray(share, np.int64) for share in lists]
