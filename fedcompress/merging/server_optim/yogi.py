"""The server optimizer ``yogi`` is ``adam`` with squares that change by additions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcompress.merging.base import Floats
from fedcompress.merging.server_optim.adam import Adam


@dataclass(frozen=True, kw_only=True)
class Yogi(Adam):
    """The optimizer keeps ``v = v - (1 - beta2) step^2 sign(v - step^2)``, and its step is ``lr m / (sqrt(v) + tau)``.

    FedYogi, Reddi et al. 2021 (arXiv:2003.00295, algorithm 2): v forgets slowly where steps become small. Its
    parameters are those of ``adam``.

    Raises:
        ConfigError: ``lr`` is below 0, ``tau`` not above 0, or a beta not from 0 to below 1.

    Examples:
        >>> from fedcompress.merging.server_optim import parse_server_optimizer, step_arrays
        >>> print(step_arrays(parse_server_optimizer("yogi(lr=1)"), [[1, 2], [1, -2]]).round(2))
        [[ 0.99  1.  ]
         [ 1.33 -0.07]]
    """

    name: ClassVar[str] = "yogi"

    def _second_moment(self, v: Floats, square: Floats) -> Floats:
        return v - (1 - self.beta2) * square * np.sign(v - square)
