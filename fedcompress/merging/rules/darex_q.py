"""DAREx-q: DARE that divides by more than the keep rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Floats
from fedcompress.merging.rules.dare import check_seed, thinned
from fedcompress.merging.rules.mean import weighted_sum
from fedcompress.merging.statistics import check_density
from fedcompress.merging.updates import Updates


@dataclass(frozen=True, kw_only=True)
class DarexQ:
    """Keep each entry with probability ``density``, divide by ``q``, then sum_i w_i * delta_i.

    Deng et al. 2025 (arXiv:2410.09344, section 4): at a low density, dividing by it makes the change of a layer's
    output too noisy; a larger q trades bias for variance. Here q is one number for all tensors. Choosing it takes data:
    a validation score, the change of outputs, or mean inputs of layers, which a coordinator does not have.
    The masks are those of ``dare``.

    Args:
        density: probability to keep, above 0, at most 1.
        q: what to divide by, from the density to 1; the default, twice the default density, is only a start.
        seed: of the masks.

    Raises:
        ConfigError: a parameter is out of range.
    """

    name: ClassVar[str] = "darex-q"
    density: float = 0.1
    q: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        check_density("rule.darex-q.density", self.density)
        check_seed("rule.darex-q.seed", self.seed)
        if not self.density <= self.q <= 1:
            raise ConfigError("rule.darex-q.q", self.q, f"must be from the density, {self.density:g}, to 1")

    def collect_statistics(self, updates: Updates, weights: Floats) -> None:
        """Needs nothing."""

    def merge_block(self, block: Block, state: None) -> Floats:
        """The mean of what is kept, scaled up, float64, shape (n,)."""
        return weighted_sum(thinned(block, self.density, self.seed)) / self.q
