"""Who is asked in a round, and who is left out for a while because it was refused or did not reply."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fedcompress.config.run_config import RunConfig
from server.events import Emit, NodeHeld
from server.ledger.ledger import SiteRow
from server.round.sampling import choose_nodes, compute_sampling_weights

MAX_DOUBLINGS = 16  # times that the rounds for which a node is left out are doubled at most


class Participants:
    """Chooses the nodes of a round, and remembers which of them were refused, have failed or still owe a reply.

    All of it is in memory only, so that a coordinator that is started again gives everybody another chance.

    Args:
        config: of the run.
        emit: takes events.
    """

    def __init__(self, config: RunConfig, emit: Emit) -> None:
        self._config = config
        self._emit = emit
        # All are by node.
        self._strikes: dict[int, int] = {}  # rounds in a row in which it was refused
        self._last_strike: dict[int, int] = {}  # the round of the last strike
        self._failed: dict[int, tuple[int, int]] = {}  # a round, and how often it failed or was refused in it
        self._held_until: dict[int, int] = {}  # the round from which it is asked again after strikes
        self._owed: dict[int, int] = {}  # replies that were given up and have not come
        self._busy_until: dict[int, int] = {}  # the round from which it is asked again although it owes replies
        self._elsewhere: dict[int, int] = {}  # the last round in which its site had answered behind another node

    def choose(self, free: Sequence[int], answered: int, round_: int, sites: Sequence[SiteRow]) -> list[int]:
        """Choose the nodes to ask in a round.

        A node that is held or busy, or has failed in this round, is asked only where the others are too few for a
        quorum. Of such nodes those come first that have failed least, so that all of them have their turn.

        Args:
            free: ids of the connected nodes that are neither awaited nor have answered.
            answered: how many nodes have answered in this round.
            round_: number of the round.
            sites: what is known of sites, for weighted sampling.

        Returns:
            Ids, in ascending order.
        """
        config = self._config
        count = math.ceil(config.sites_per_round * config.over_sampling)
        missing = max(count - answered, 1) if count else len(free)
        ready = [n for n in free if self._asked_again_in(n) <= round_ and not self.failures(n, round_)]
        if len(ready) >= max(config.quorum - answered, 1):
            return choose_nodes(ready, missing, config.seed, round_, compute_sampling_weights(config.sampling, sites))
        others = sorted(set(free) - set(ready), key=lambda n: (self.failures(n, round_), self._asked_again_in(n), n))
        return sorted((ready + others)[:missing])

    def _asked_again_in(self, node: int) -> int:
        """Return the round from which a node is asked again; 0 if it is not left out."""
        return max(self._held_until.get(node, 0), self._busy_until.get(node, 0))

    def record_refusal(self, node: int, round_: int) -> None:
        """Record that a node was refused, or reported a failure.

        Several in one round are one strike; a node with ``max-refusals`` strikes in a row, or more, is left out for 1,
        2, 4, ... rounds.
        """
        self.record_failure(node, round_)
        if self._last_strike.get(node) == round_:
            return
        self._last_strike[node] = round_
        self._strikes[node] = self._strikes.get(node, 0) + 1
        surplus = self._strikes[node] - self._config.max_refusals
        if self._config.max_refusals and surplus >= 0:
            self._held_until[node] = round_ + 1 + 2 ** min(surplus, MAX_DOUBLINGS)
            self._emit(NodeHeld(node=str(node), until_round=self._held_until[node]))

    def record_failure(self, node: int, round_: int) -> None:
        """Record that a node has failed once more in a round."""
        self._failed[node] = (round_, self.failures(node, round_) + 1)

    def failures(self, node: int, round_: int) -> int:
        """Return how often a node has failed or was refused in a round."""
        last_round, times = self._failed.get(node, (0, 0))
        return times if last_round == round_ else 0

    def fewest_failures(self, nodes: Iterable[int], round_: int) -> int | None:
        """Return how often the node has failed in a round that has failed least; None if there are no nodes."""
        return min((self.failures(node, round_) for node in nodes), default=None)

    def record_other_node(self, node: int, round_: int) -> None:
        """Record that the site of a node has answered behind another node: SuperNodes come back under other ids."""
        self._elsewhere[node] = round_

    def answered_elsewhere(self, round_: int) -> set[int]:
        """Return the nodes whose sites have answered in a round behind another node."""
        return {node for node, last_round in self._elsewhere.items() if last_round == round_}

    def record_admitted(self, node: int) -> None:
        """Record that an update of a node was admitted, which ends its row of strikes."""
        self._strikes.pop(node, None)
        self._held_until.pop(node, None)

    def record_no_reply(self, node: int, round_: int) -> None:
        """Record that the reply of a node was given up in a round, and is owed from then on.

        A SuperNode does one task after another, so that a new one would wait for the old one. It is asked again when it
        has answered, and until then is left out for 1, 2, 4, ... rounds after this one.
        """
        self._owed[node] = self._owed.get(node, 0) + 1
        self._busy_until[node] = round_ + 1 + 2 ** min(self._owed[node] - 1, MAX_DOUBLINGS)

    def owes(self, node: int) -> bool:
        """Return whether a node may still be at work on what was given up."""
        return self._owed.get(node, 0) > 0

    def record_reply(self, node: int, *, late: bool = False) -> None:
        """Record a reply. A late reply settles one of the replies that the node still owes; any other settles all."""
        self._owed[node] = self._owed.get(node, 0) - 1 if late else 0
        if self._owed[node] <= 0:
            del self._owed[node]
            self._busy_until.pop(node, None)
