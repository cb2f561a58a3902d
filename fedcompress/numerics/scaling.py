"""Keeps products of float32 within their range: exact scaling by powers of two, and saturation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedcompress.types import Array


def saturate(values: Array, exponent: int = 0) -> Array:
    """Return float32 values times ``2^exponent``, rounded once and clipped to the finite range.

    Infinities become the largest finite float32 of their sign; NaN stays NaN.
    """
    top = np.finfo(np.float32).max
    with np.errstate(over="ignore", under="ignore"):
        scaled = values if exponent == 0 else np.ldexp(values, np.int32(exponent))
        clipped: Array = np.clip(scaled, -top, top)
    return clipped


def choose_exponent(values: Sequence[Array]) -> int:
    """Return the power of two to divide the arrays by, so that products of their float32 entries are safe.

    It is 0 where the largest magnitude lies between 1e-12 and 1e12, or is 0. Otherwise ``2^-exponent`` brings the
    largest magnitude to between 0.5 and 1. It fits in a signed byte.
    """
    largest = max((float(np.abs(v).max(initial=0)) for v in values), default=0.0)
    if largest == 0 or 1e-12 <= largest <= 1e12:
        return 0
    return min(max(math.frexp(largest)[1], -128), 127)
