"""Norm clipping bounds the size of an update (McMahan et al. 2018, arXiv:1710.06963, section 2, flat clipping)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.types import Array, Tensors, l2_norm


def clip_factor(norm: float, max_norm: float) -> np.float32:
    """Return the float32 factor that brings a norm down to a bound; 1 if the norm is not above it."""
    return np.float32(1) if norm <= max_norm else np.float32(max_norm / norm)


def clip_update(delta: Mapping[str, Array], max_norm: float) -> tuple[Tensors, float]:
    """Scale all tensors of an update by ``min(1, max_norm / norm)``.

    Args:
        delta: float32 tensors.
        max_norm: bound on the Euclidean norm over all of them; above 0.

    Returns:
        The clipped tensors and the norm before clipping. A norm of 0 is left alone.

    Raises:
        ConfigError: ``max_norm`` is not above 0.
    """
    if not max_norm > 0:
        raise ConfigError("privacy.max_norm", max_norm, "must be above 0")
    norm = l2_norm(delta.values())
    if norm <= max_norm:
        return dict(delta), norm
    factor = clip_factor(norm, max_norm)
    return {name: value * factor for name, value in delta.items()}, norm
