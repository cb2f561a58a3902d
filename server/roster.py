"""Who is asked in a round, and who is left out for a while."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from fedcompress.config import RunConfig
from server.ledger import SiteRow
from server.sampling import choose, weights_for


class Roster:
    """Refusals of nodes in a row, in memory: a coordinator that is started again gives everybody another chance."""

    def __init__(self, config: RunConfig, emit: Callable[[dict[str, Any]], None]) -> None:
        self._config = config
        self._emit = emit
        self._strikes: dict[int, int] = {}
        self._held: dict[int, int] = {}  # the round from which a node is asked again

    def choose(self, free: Sequence[int], answered: int, round_: int, sites: Sequence[SiteRow]) -> list[int]:
        """Nodes to ask in a round, in which so many have answered; one that is held only where there is no other."""
        config = self._config
        nodes = [n for n in free if self._held.get(n, 0) <= round_] or list(free)
        count = math.ceil(config.sites_per_round * config.over_sampling)
        missing = max(count - answered, 1) if count else 0
        return choose(nodes, missing, config.seed, round_, weights_for(config.sampling, sites))

    def strike(self, node: int, round_: int) -> None:
        """One more refusal in a row; a node with too many is left out for 1, 2, 4, ... rounds."""
        self._strikes[node] = self._strikes.get(node, 0) + 1
        over = self._strikes[node] - self._config.max_refusals
        if self._config.max_refusals and over >= 0:
            self._held[node] = round_ + 1 + 2 ** min(over, 16)
            self._emit({"event": "held", "node": str(node), "until_round": self._held[node]})

    def clear(self, node: int) -> None:
        """An update of it was admitted."""
        self._strikes.pop(node, None)
