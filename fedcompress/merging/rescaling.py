"""Scales what is left of a sparse update, so that it has the norm that it had before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Floats
from fedcompress.merging.statistics import MagnitudeBounds
from fedcompress.merging.ties_steps import trim
from fedcompress.merging.updates import THREADS, Updates
from fedcompress.types import Array

NONE = "none"  # what is left stays as it was
_NORMS: Mapping[str, Callable[[Floats], float]] = {
    "l1": lambda magnitudes: float(magnitudes.sum()),
    "l2": lambda magnitudes: float(np.sqrt(np.square(magnitudes).sum())),
    "linf": lambda magnitudes: float(magnitudes.max(initial=0.0)),
}


def check_rescale(field: str, rescale: str) -> None:
    """Raise ``ConfigError`` unless a name is ``none`` or one of the norms."""
    if rescale not in (NONE, *_NORMS):
        raise ConfigError(field, rescale, f"one of {[NONE, *_NORMS]}")


def find_factors(updates: Updates, bounds: MagnitudeBounds, rescale: str) -> Mapping[str, Floats] | None:
    """Find the norm of each tensor before a trim over that after it, for each site.

    Args:
        updates: updates of all sites.
        bounds: what the trim keeps.
        rescale: ``none``, or the norm: ``l1``, ``l2`` or ``linf``.

    Returns:
        By tensor, shape (sites,), float64; 1 where nothing is left. None for ``none``.
    """
    if rescale == NONE:
        return None
    norm = _NORMS[rescale]
    places = [(t.name, site) for t in updates.layout.tensors for site in range(updates.count)]

    def measure(place: tuple[str, int]) -> float:
        name, site = place
        values = updates.read(site, name)
        high = None if bounds.high is None else bounds.high[name][site : site + 1]
        left = trim(values[None], bounds.low[name][site : site + 1], high)[0]
        after = norm(np.abs(left.astype(np.float64)))
        return norm(np.abs(values.astype(np.float64))) / after if after else 1.0

    with ThreadPoolExecutor(THREADS) as pool:
        table = np.array(list(pool.map(measure, places))).reshape(-1, updates.count)
    return dict(zip([t.name for t in updates.layout.tensors], table, strict=True))


def trim_and_scale(name: str, values: Array, state: MagnitudeBounds) -> Array:
    """Trim the entries of a block, and scale what is left where the state has factors.

    Args:
        name: name of the tensor.
        values: shape (sites, n), float32.
        state: what stays, and the factors.

    Returns:
        Shape (sites, n), float32.
    """
    trimmed = trim(values, state.low[name], None if state.high is None else state.high[name])
    if state.factors is None:
        return trimmed
    with np.errstate(over="ignore"):  # infinity is refused when the step is encoded
        scaled: Array = (trimmed * state.factors[name][:, None]).astype(np.float32)
    return scaled
