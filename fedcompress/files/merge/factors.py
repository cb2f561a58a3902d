"""Factors of the sites are shown here as updates from zero, for rules that merge entry by entry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.files.merge.sources import Site
from fedcompress.merging import Pair
from fedcompress.types import Array, Layout, TensorSpec


def list_pairs(sites: Sequence[Site], rule: str, *, pad: bool) -> list[Pair]:
    """List one pair of factors for each module, of the highest rank that a site has, with kernels flattened.

    Args:
        sites: the adapters.
        rule: name of the rule, for the message.
        pad: whether lower ranks may be filled up with zeros; this is exact for products, but not for factors.

    Returns:
        The pairs, sorted by name of the module.

    Raises:
        ConfigError: ranks differ, and padding is not allowed.
    """
    pairs = []
    for name in sorted({n for s in sites for n in s.modules}):
        modules = [s.modules[name] for s in sites if name in s.modules]
        ranks = sorted({m.rank for m in modules})
        if len(ranks) > 1 and not pad:
            reason = f"the adapters have ranks {ranks} in {name}: entries correspond only at equal ranks; "
            raise ConfigError("--space", "factors", f"{reason}use --space product for {rule}, or --rule exact")
        rows, columns = modules[0].shape
        part = name.removeprefix(modules[0].module)  # which expert; nothing for a module without
        pairs.append(
            Pair(
                name,
                TensorSpec(name=modules[0].a.name + part, shape=(ranks[-1], columns), group="lora_a"),
                TensorSpec(name=modules[0].b.name + part, shape=(rows, ranks[-1]), group="lora_b"),
            )
        )
    return pairs


class FactorUpdates:
    """Shows the factors that the sites have as updates, with B scaled; nothing is in memory but the file headers.

    Where a site lacks a module, its B is zero and its A is the mean of those that have it, so that an absent update
    does not pull A towards zero.
    """

    def __init__(self, sites: Sequence[Site], pairs: Sequence[Pair], weights: Sequence[float]) -> None:
        """Take the adapters, the pairs to show, and the weights of the sites."""
        self._sites = sites
        self._weights = weights
        self._pair_and_group = {t.name: (p, t.group) for p in pairs for t in (p.a, p.b)}
        self.layout = Layout(tuple(t for p in pairs for t in (p.a, p.b)))

    @property
    def count(self) -> int:
        """Return the number of sites."""
        return len(self._sites)

    def read(self, site: int, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Read flat entries of a factor of one site; ranks below the highest are filled up with zeros.

        Args:
            site: number of the site, from 0.
            name: name of the tensor.
            start: index of the first entry in the flat tensor.
            stop: index behind the last entry; the end of the tensor if left out or beyond it.

        Returns:
            Shape (stop - start,), float32.
        """
        spec = self.layout.by_name[name]
        width = spec.shape[1]
        end = spec.numel if stop is None else min(stop, spec.numel)
        first = start // width
        last = -(-end // width)
        values = self._read_rows(site, name, first, last)
        flat: Array = values.reshape(-1)[start - first * width : end - first * width]
        return flat

    def _read_rows(self, site: int, name: str, first: int, last: int) -> Array:
        pair, group = self._pair_and_group[name]
        width = self.layout.by_name[name].shape[1]
        out = np.zeros((last - first, width), np.float32)
        module = self._sites[site].modules.get(pair.name)
        if module is None:
            return self._average_a(pair, name, first, last) if group == "lora_a" else out
        end = min(last, module.rank if group == "lora_a" else module.shape[0])
        if first < end:
            read = self._sites[site].read_a if group == "lora_a" else self._sites[site].read_b
            values = read(module, first, end).reshape(end - first, -1)
            if group == "lora_b":
                values = np.float32(module.scaling) * values
            out[: end - first, : values.shape[1]] = values
        return out

    def _average_a(self, pair: Pair, name: str, first: int, last: int) -> Array:
        """Average rows of A over the sites that have the module."""
        owners = [i for i, s in enumerate(self._sites) if pair.name in s.modules]
        shares = np.array([self._weights[i] for i in owners])
        shares = shares / shares.sum() if shares.sum() else np.full(len(owners), 1 / len(owners))
        total = np.zeros((last - first, self.layout.by_name[name].shape[1]))
        for share, i in zip(shares, owners, strict=True):
            total += share * self._read_rows(i, name, first, last)
        return total.astype(np.float32)
