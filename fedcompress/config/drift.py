"""A drift correction changes the gradients of a site so that its model does not drift away from those of other sites.

State of a correction that outlives a round is stored by the site, with its residual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.call_syntax import parse_call
from fedcompress.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class NoCorrection:
    """Local training is left as it is: no gradient is changed."""

    name: ClassVar[str] = "none"


@dataclass(frozen=True, kw_only=True)
class FedProx:
    """FedProx adds ``mu (theta - h)`` to the gradient (Li et al. 2020, arXiv:1812.06127, section 3.2).

    ``theta`` are the trained parameters, and ``h`` is the published state that the round started from.
    """

    name: ClassVar[str] = "fedprox"
    mu: float = 0.01  # weight of the proximal term; above 0

    def __post_init__(self) -> None:
        if not self.mu > 0:
            raise ConfigError("correction.fedprox.mu", self.mu, "must be above 0")


DriftCorrection = NoCorrection | FedProx
DRIFT_CORRECTIONS: dict[str, type[DriftCorrection]] = {c.name: c for c in (NoCorrection, FedProx)}


def parse_drift_correction(text: str, field: str = "correction") -> DriftCorrection:
    """Parse a drift correction, written ``name`` or ``name(key=value)``.

    Args:
        text: such as ``fedprox(mu=0.1)``.
        field: name of the setting in error messages.

    Raises:
        ConfigError: unknown name or key, or a value out of range.
    """
    return parse_call(text, DRIFT_CORRECTIONS, field)
