"""Refuses updates that were admitted, for what they are beside the others: far longer, or too long for any step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedcompress.config.run_config import RunConfig
from server.ledger.ledger import Ledger
from server.round.aggregation import AdmittedUpdate
from server.round.norm_bound import NORM_HISTORY, compute_norm_bound
from server.round.open_round import OpenRound
from server.round.participants import Participants
from server.round.shares import versions_per_turn
from server.transport.base import Transport


@dataclass(frozen=True)
class Outliers:
    """Drops outliers of a round.

    Attributes:
        config: of the run.
        ledger: has the norms of earlier updates.
        transport: tells which nodes are connected.
        participants: is told whose updates stay.
        refuse: records the refusal of an update, with its reason.
    """

    config: RunConfig
    ledger: Ledger
    transport: Transport
    participants: Participants
    refuse: Callable[[OpenRound, AdmittedUpdate, str], None]

    def drop_long(self, open_round: OpenRound) -> None:
        """Refuse the admitted updates that are far longer than the others, or than ``max-norm``."""
        config = self.config
        norms = {update.site: update.norm for update in open_round.admitted}
        turn = versions_per_turn(len(self.transport.nodes()), config.buffer)
        earlier_norms = self.ledger.norms(NORM_HISTORY * turn)
        bound = compute_norm_bound(config.norm_bound, norms, earlier_norms, config.max_norm)
        for update in list(open_round.admitted):
            if update.norm > bound:
                self._drop(update, f"must be at most {bound:.4g}", open_round)
            else:
                self.participants.record_admitted(update.node)

    def drop_longest(self, open_round: OpenRound, reason: str) -> int:
        """Refuse the longest admitted update: with it the step is not finite, and the run goes on without it.

        Args:
            open_round: with at least one update.
            reason: what was not finite.

        Returns:
            The node that the update came from.
        """
        longest = max(open_round.admitted, key=lambda update: (update.norm, update.site))
        self._drop(longest, f"must be such that the step is finite: {reason}", open_round)
        return longest.node

    def _drop(self, update: AdmittedUpdate, rule: str, open_round: OpenRound) -> None:
        open_round.admitted.remove(update)
        self.refuse(open_round, update, f"norm: {update.norm:.4g}: {rule}")
