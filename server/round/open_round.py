"""The round that is open: where it starts from, who was asked, and what was admitted so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedcompress.wire import Kind
from server.ledger.versions import PublishedState
from server.round.aggregation import AdmittedUpdate, sort_by_site


@dataclass
class OpenRound:
    """A round, or the evaluation after the last round, from its beginning to its commit.

    Attributes:
        number: of the round, from 1.
        published: the version that it starts from.
        steps: local steps that a site trains; 0 asks only for the quality of the version.
        enough: updates after which no more replies are awaited; 0: everybody who was asked is awaited. Reports do not
            count.
        started_at: when sites enough were there to be asked, on the coordinator's clock, seconds; None before.
        asked: ids of the nodes that were asked so far.
        admitted: updates, or reports where no steps are trained, in the order of arrival.
    """

    number: int
    published: PublishedState
    steps: int
    enough: int = 0
    started_at: float | None = None
    asked: set[int] = field(default_factory=set)
    admitted: list[AdmittedUpdate] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Return whether enough updates were admitted; an evaluation has enough only when everybody has reported."""
        return bool(self.steps) and 0 < self.enough <= len(self.admitted)

    @property
    def reply_kind(self) -> Kind:
        """Return the kind of envelope that a site answers with."""
        return Kind.UPDATE if self.steps else Kind.REPORT

    @property
    def admitted_nodes(self) -> set[int]:
        """Return the ids of the nodes whose replies were admitted."""
        return {update.node for update in self.admitted}

    @property
    def admitted_sites(self) -> set[str]:
        """Return the names of the sites whose replies were admitted."""
        return {update.site for update in self.admitted}

    @property
    def by_site(self) -> list[AdmittedUpdate]:
        """Return what was admitted by the names of sites, so that sums do not depend on the order of arrival."""
        return sort_by_site(self.admitted)

    def age(self, version: int) -> int:
        """Return how many versions were published since this one."""
        return self.published.version - version
