"""Corrections of drift: what a site adds to its gradients so as not to leave the others behind.

State that outlives a round is kept by the site, with its residual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.call_syntax import parse_call
from fedcompress.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class NoCorrection:
    """Plain local training."""

    name: ClassVar[str] = "none"


@dataclass(frozen=True, kw_only=True)
class FedProx:
    """``mu (theta - h)`` is added to the gradient (Li et al. 2020, arXiv:1812.06127, section 3.2)."""

    name: ClassVar[str] = "fedprox"
    mu: float = 0.01

    def __post_init__(self) -> None:
        if not self.mu > 0:
            raise ConfigError("correction.fedprox.mu", self.mu, "must be above 0")


DriftCorrection = NoCorrection | FedProx
DRIFT_CORRECTIONS: dict[str, type[DriftCorrection]] = {c.name: c for c in (NoCorrection, FedProx)}


def parse_drift_correction(text: str, field: str = "correction") -> DriftCorrection:
    """Parse ``name(key=value)``.

    Raises:
        ConfigError: unknown name or key, or a value out of range.
    """
    return parse_call(text, DRIFT_CORRECTIONS, field)
