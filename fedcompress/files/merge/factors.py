"""Factors of sites as updates from zero, for rules that merge entry by entry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.files.merge.sources import Site
from fedcompress.merging import Pair
from fedcompress.types import Array, Layout, TensorSpec


def pairs_for(sites: Sequence[Site], rule: str, *, pad: bool) -> list[Pair]:
    """One pair for each module, of the highest rank, kernels flattened.

    Raises:
        ConfigError: ranks differ, and padding, which is exact for products only, is not asked for.
    """
    pairs = []
    for name in sorted({n for s in sites for n in s.modules}):
        found = [s.modules[name] for s in sites if name in s.modules]
        ranks = sorted({f.rank for f in found})
        if len(ranks) > 1 and not pad:
            reason = f"the adapters have ranks {ranks} in {name}: entries correspond only at equal ranks; "
            raise ConfigError("--space", "factors", f"{reason}use --space product for {rule}, or --rule exact")
        rows, columns = found[0].shape
        a, b = found[0].a, found[0].b
        pairs.append(
            Pair(
                name,
                TensorSpec(name=a.name, shape=(ranks[-1], columns), group="lora_a"),
                TensorSpec(name=b.name, shape=(rows, ranks[-1]), group="lora_b"),
            )
        )
    return pairs


class FactorUpdates:
    """What sites have, with B scaled; nothing is kept but the file headers.

    Where a site lacks a module, its B is zero and its A the mean of those that have it, so that an
    absent update does not pull A towards zero.
    """

    def __init__(self, sites: Sequence[Site], pairs: Sequence[Pair], weights: Sequence[float]) -> None:
        self._sites, self._weights = sites, weights
        self._of = {t.name: (p, t.group) for p in pairs for t in (p.a, p.b)}
        self.layout = Layout(tuple(t for p in pairs for t in (p.a, p.b)))

    @property
    def count(self) -> int:
        """How many sites."""
        return len(self._sites)

    def read(self, site: int, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Flat entries, float32; ranks below the highest are filled up with zeros."""
        spec = self.layout.by_name[name]
        width = spec.shape[1]
        end = spec.numel if stop is None else min(stop, spec.numel)
        first, last = start // width, -(-end // width)
        values = self._rows(site, name, first, last)
        flat: Array = values.reshape(-1)[start - first * width : end - first * width]
        return flat

    def _rows(self, site: int, name: str, first: int, last: int) -> Array:
        pair, group = self._of[name]
        width = self.layout.by_name[name].shape[1]
        out = np.zeros((last - first, width), np.float32)
        own = self._sites[site].modules.get(pair.name)
        if own is None:
            return self._mean_a(pair, name, first, last) if group == "lora_a" else out
        spec = own.a if group == "lora_a" else own.b
        end = min(last, spec.shape[0])
        if first < end:
            values = self._sites[site].read(spec, first, end).reshape(end - first, -1)
            out[: end - first, : values.shape[1]] = values if group == "lora_a" else np.float32(own.scaling) * values
        return out

    def _mean_a(self, pair: Pair, name: str, first: int, last: int) -> Array:
        owners = [i for i, s in enumerate(self._sites) if pair.name in s.modules]
        shares = np.array([self._weights[i] for i in owners])
        shares = shares / shares.sum() if shares.sum() else np.full(len(owners), 1 / len(owners))
        total = np.zeros((last - first, self.layout.by_name[name].shape[1]))
        for share, i in zip(shares, owners, strict=True):
            total += share * self._rows(i, name, first, last)
        return total.astype(np.float32)
