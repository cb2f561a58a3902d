"""WiSE-FT goes a part of the way from the published state to the mean of the sites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.merging.base import Block, Floats, Stateless
from fedcompress.merging.rules.mean import check_share, weighted_sum


@dataclass(frozen=True, kw_only=True)
class WiseFt(Stateless):
    """The rule interpolates between the published state and the mean of the sites.

    ``(1 - alpha) * base + alpha * (base + sum_i w_i * delta_i)`` is, as an update, ``alpha * sum_i w_i * delta_i``.

    Wortsman et al. 2022 (arXiv:2109.01903, section 3) interpolate a fine-tuned model and the one that it started
    from. BANG (Lin et al. 2024, arXiv:2309.17230, section 5) has the same law, with models that label smoothing or
    mixup have made less sure of themselves, so that neither outvotes the other. Both papers mean the pre-trained
    model. Here the base is the published state, which is that model only in the first round, or where adapters are
    merged once. On LoRA factors both factors are interpolated; ``space=product`` interpolates their product.

    Args:
        alpha: share of the way, from 0 (the base) to 1 (the mean).

    Raises:
        ConfigError: alpha is not from 0 to 1.

    Examples:
        >>> from fedcompress.merging import merge_arrays, parse_rule
        >>> print(merge_arrays(parse_rule("wise-ft(alpha=0.25)"), [[1, 0, 2], [3, 4, 2]]))
        [0.5 0.5 0.5]
    """

    name: ClassVar[str] = "wise-ft"
    alpha: float = 0.5

    def __post_init__(self) -> None:
        check_share("rule.wise-ft.alpha", self.alpha, "the base", "the mean")

    def merge_block(self, block: Block, state: None) -> Floats:
        """Return a share of the mean, float64, shape (n,)."""
        return self.alpha * weighted_sum(block.values, block.weights)
