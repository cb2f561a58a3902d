"""Rows of one data set are shared among sites: by a key, by skewed classes, by skewed sizes, or evenly.

A Dirichlet distribution over classes is how Hsu et al. 2019 (arXiv:1909.06335) make sites differ. Here it is drawn for
each class over the sites, as Li et al. 2021 (arXiv:2102.02079) do, whose quantity skew is the way ``quantity``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from fedcompress.errors import ConfigError, one_of

HOWS = ("iid", "key", "dirichlet", "quantity")  # ways to share rows
DRAWS = 1000  # draws from a Dirichlet distribution before rows are moved to the sites that lack some

Rows = np.typing.NDArray[np.int64]  # row numbers, from 0
Shares = Sequence[Rows]  # the rows of each site, or of each key


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A partition says how rows are shared among sites.

    Args:
        sites: number of sites.
        how: ``iid``: random rows, and sizes as equal as can be; ``key``: all rows of a key are at one site, and the
            largest key goes first to the site with the fewest rows; ``dirichlet``: the rows of each key are shared by
            a draw of their own; ``quantity``: random rows, and sizes from one draw.
        alpha: concentration of the Dirichlet distributions: small for sites that differ, large for sites that do not.
        least: rows that every site gets at least.
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
            raise ConfigError("how", self.how, one_of(HOWS, self.how))
        if not 0 < self.alpha < math.inf:
            raise ConfigError("alpha", self.alpha, "must be above 0 and finite")
        for name in ("least", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(name, getattr(self, name), "must be at least 0")


def partition(count: int, rule: Partition, keys: Sequence[Hashable] | None = None) -> list[list[int]]:
    """Share rows among sites, so that every row is at exactly one site.

    Args:
        count: number of rows.
        rule: how they are shared.
        keys: key of each row, for ``key`` and ``dirichlet``.

    Returns:
        The row numbers of each site, ascending.

    Raises:
        ConfigError: there are fewer rows than the sites' least; keys are absent, too few, or cannot give the least.
    """
    if count < rule.sites * rule.least:
        raise ConfigError("rows", count, f"must be at least {rule.sites * rule.least}, {rule.least} for each site")
    if rule.how in ("key", "dirichlet") and (keys is None or len(keys) != count):
        number = "none" if keys is None else len(keys)
        raise ConfigError("keys", number, f"must be one for each of {count} rows with {rule.how}")
    random = np.random.Generator(np.random.Philox(rule.seed))
    match rule.how:
        case "key":
            shares = _share_by_key(rule, _group_rows(keys or []))
        case "dirichlet":
            groups = _group_rows(keys or [])
            shares = _draw_until_enough(rule, lambda: _share_by_class(groups, rule, random))
        case "quantity":
            shares = _draw_until_enough(rule, lambda: _split_at_random(random.permutation(count), rule, random))
        case _:
            shares = [np.sort(part) for part in np.array_split(random.permutation(count), rule.sites)]
    return [sorted(int(row) for row in share) for share in shares]


def _group_rows(keys: Sequence[Hashable]) -> list[Rows]:
    """Return the rows of each key, keys in the order in which they first appear."""
    groups: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return [np.asarray(rows, np.int64) for rows in groups.values()]


def _share_by_key(rule: Partition, groups: Shares) -> Shares:
    """Give all rows of a key to the site with the fewest rows, the largest key first."""
    shares: list[list[Rows]] = [[] for _ in range(rule.sites)]
    sizes = [0] * rule.sites
    for rows in sorted(groups, key=len, reverse=True):
        site = sizes.index(min(sizes))
        shares[site].append(rows)
        sizes[site] += len(rows)
    if min(sizes) < rule.least:
        message = f"must give each of {rule.sites} sites {rule.least} rows: the smallest would have {min(sizes)}"
        raise ConfigError("keys", f"{len(groups)} distinct", message)
    return [np.concatenate(share) if share else np.empty(0, np.int64) for share in shares]


def _share_by_class(groups: Shares, rule: Partition, random: np.random.Generator) -> Shares:
    """Share the rows of each class among the sites by a draw of their own."""
    shares: list[list[Rows]] = [[] for _ in range(rule.sites)]
    for rows in groups:
        shuffled = random.permutation(rows)
        for site, part in enumerate(_split_at_random(shuffled, rule, random)):
            shares[site].append(part)
    return [np.concatenate(share) for share in shares] if groups else [np.empty(0, np.int64)] * rule.sites


def _split_at_random(rows: Rows, rule: Partition, random: np.random.Generator) -> Shares:
    """Split rows into a share for each site, by one draw of the shares' sizes.

    The places of the cuts are rounded, not the sizes, so that no row is lost.
    """
    parts = random.dirichlet(np.full(rule.sites, rule.alpha))
    if not np.isfinite(parts).all():  # all gammas underflowed: one site has everything
        parts = np.eye(rule.sites)[random.integers(rule.sites)]
    ends = np.rint(np.cumsum(parts)[:-1] * len(rows)).astype(np.int64)
    return np.split(rows, ends)


def _draw_until_enough(rule: Partition, draw: Callable[[], Shares]) -> Shares:
    """Draw until every site has its least, so that shares have the distribution on that condition.

    After ``DRAWS`` draws, rows of the last one are moved instead.
    """
    for _ in range(DRAWS):
        shares = draw()
        if min(len(share) for share in shares) >= rule.least:
            return shares
    return _fill_up(shares, rule.least)


def _fill_up(shares: Shares, least: int) -> Shares:
    """Move the rows that sites lack, one at a time from the site that has the most."""
    lists = [share.tolist() for share in shares]
    for share in lists:
        while len(share) < least:
            share.append(max(lists, key=len).pop())
    return [np.asarray(share, np.int64) for share in lists]
