"""Who is asked in a round, and who is left out for a while."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from fedcompress.config.run_config import RunConfig
from server.ledger.ledger import SiteRow
from server.round.sampling import choose_nodes, sampling_weights


class Participants:
    """Refusals of nodes in a row, and who still works on what was given up; in memory, so that a coordinator that is
    started again gives everybody another chance.
    """

    def __init__(self, config: RunConfig, emit: Callable[[dict[str, Any]], None]) -> None:
        self._config = config
        self._emit = emit
        self._strikes: dict[int, int] = {}
        self._struck: dict[int, int] = {}  # the round of the last strike
        self._failed: dict[int, tuple[int, int]] = {}  # round, and times that a node failed or was refused in it
        self._held: dict[int, int] = {}  # the round from which a node is asked again
        self._owed: dict[int, int] = {}  # replies that were not waited for
        self._busy: dict[int, int] = {}  # the same, unless it answers before
        self._twice: dict[int, int] = {}  # the last round in which its site had answered behind another node

    def choose(self, free: Sequence[int], answered: int, round_: int, sites: Sequence[SiteRow]) -> list[int]:
        """Nodes to ask in a round, in which so many have answered.

        One that is held or busy, or has failed in this round, is asked only where the others are too few for a quorum,
        and then those first that have failed least, so that all of them have their turn.
        """
        config = self._config
        count = math.ceil(config.sites_per_round * config.over_sampling)
        missing = max(count - answered, 1) if count else len(free)
        ready = [n for n in free if self._until(n) <= round_ and not self.failures(n, round_)]
        if len(ready) >= max(config.quorum - answered, 1):
            return choose_nodes(ready, missing, config.seed, round_, sampling_weights(config.sampling, sites))
        others = sorted(set(free) - set(ready), key=lambda n: (self.failures(n, round_), self._until(n), n))
        return sorted((ready + others)[:missing])

    def _until(self, node: int) -> int:
        """The round from which it is asked again."""
        return max(self._held.get(node, 0), self._busy.get(node, 0))

    def record_refusal(self, node: int, round_: int) -> None:
        """Refused, or failed, in one more round in a row; a node with too many is left out for 1, 2, 4, ... rounds."""
        self.record_failure(node, round_)
        if self._struck.get(node) == round_:
            return
        self._struck[node] = round_
        self._strikes[node] = self._strikes.get(node, 0) + 1
        over = self._strikes[node] - self._config.max_refusals
        if self._config.max_refusals and over >= 0:
            self._held[node] = round_ + 1 + 2 ** min(over, 16)
            self._emit({"event": "held", "node": str(node), "until_round": self._held[node]})

    def record_failure(self, node: int, round_: int) -> None:
        """Once more in a round."""
        self._failed[node] = (round_, self.failures(node, round_) + 1)

    def failures(self, node: int, round_: int) -> int:
        """Times that it failed or was refused in a round."""
        last, times = self._failed.get(node, (0, 0))
        return times if last == round_ else 0

    def record_other_node(self, node: int, round_: int) -> None:
        """Its site has answered behind another node: SuperNodes come back under other ids."""
        self._twice[node] = round_

    def answered_elsewhere(self, round_: int) -> set[int]:
        """Nodes of whose sites there is an answer in a round already."""
        return {node for node, last in self._twice.items() if last == round_}

    def record_admitted(self, node: int) -> None:
        """An update of it was admitted."""
        self._strikes.pop(node, None)
        self._held.pop(node, None)

    def record_no_reply(self, node: int, round_: int) -> None:
        """It was not waited for. A SuperNode does one task after another, so that a new one would wait for the old:
        it is asked again when it has answered, or is left out for 1, 2, 4, ... rounds after this one.
        """
        self._owed[node] = self._owed.get(node, 0) + 1
        self._busy[node] = round_ + 1 + 2 ** min(self._owed[node] - 1, 16)

    def record_reply(self, node: int, *, late: bool = False) -> None:
        """It has, and with that whatever it owed from before; or ``late``, one of what it owes."""
        self._owed[node] = self._owed.get(node, 0) - 1 if late else 0
        if self._owed[node] <= 0:
            del self._owed[node]
            self._busy.pop(node, None)
