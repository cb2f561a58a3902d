"""DAREx-q is DARE that divides by more than the keep rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcompress.errors import ConfigError
from fedcompress.merging.rules.dare import Dare


@dataclass(frozen=True, kw_only=True)
class DarexQ(Dare):
    """The rule keeps each entry with probability ``density``, divides it by ``q``, then takes ``sum_i w_i * delta_i``.

    Deng et al. 2025 (arXiv:2410.09344, section 4): at a low density, dividing by it makes the change of a layer's
    output too noisy; a larger q trades bias for variance. Here q is one number for all tensors. Choosing it takes
    data: a validation score, the change of outputs, or mean inputs of layers, which a coordinator does not have.
    The masks are those of ``dare``.

    Args:
        density: probability to keep an entry, above 0, at most 1.
        q: what the kept entries are divided by, from the density to 1; the default, twice the default density, is
            only a start.
        seed: seed of the masks, from 0 to below 2^63.

    Raises:
        ConfigError: a parameter is out of range.

    Examples:
        >>> from fedcompress.merging import merge_arrays, parse_rule
        >>> print(merge_arrays(parse_rule("darex-q(density=0.5,q=0.8,seed=3)"), [[1, 2, 3, 4], [1, 2, 3, 4]]))
        [0.625 0.    1.875 0.   ]
    """

    name: ClassVar[str] = "darex-q"
    q: float = 0.2

    def _check_divisor(self) -> None:
        if not self.density <= self.q <= 1:
            raise ConfigError("rule.darex-q.q", self.q, f"must be from the density, {self.density:g}, to 1")
