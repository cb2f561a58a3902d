"""WiSE-FT: a part of the way from the published state to the mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.errors import ConfigError
from fedcompress.merging.base import Block, Floats
from fedcompress.merging.rules.mean import weighted_sum
from fedcompress.merging.updates import Updates


@dataclass(frozen=True, kw_only=True)
class WiseFt:
    """(1 - alpha) * base + alpha * (base + sum_i w_i * delta_i), as an update: alpha * sum_i w_i * delta_i.

    Wortsman et al. 2022 (arXiv:2109.01903, section 3) interpolate a fine-tuned model and the one that it started
    from. BANG (Lin et al. 2024, arXiv:2309.17230, section 5) has the same law, with models that were trained to be less
    sure of themselves by label smoothing or mixup, so that neither outvotes the other. Both mean the pre-trained
    model; here the base is the published state, which is that model only in the first round or where adapters are
    merged once. On LoRA factors both factors are interpolated; ``space=product`` interpolates their product.

    Args:
        alpha: share of the way, from 0 (the base) to 1 (the mean).

    Raises:
        ConfigError: alpha is not from 0 to 1.
    """

    name: ClassVar[str] = "wise-ft"
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError("rule.wise-ft.alpha", self.alpha, "must be from 0 (the base) to 1 (the mean)")

    def collect_statistics(self, updates: Updates, weights: Floats) -> None:
        """Needs nothing."""

    def merge_block(self, block: Block, state: None) -> Floats:
        """A share of the mean, float64, shape (n,)."""
        return self.alpha * weighted_sum(block)
