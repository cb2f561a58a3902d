"""A watcher reads the ledger in one consistent look that neither waits for the coordinator nor holds it up."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.ledger.reader import LedgerReader
from server.ledger.recovery import LEDGER
from server.ledger.schema import SCHEMA, upgrade
from server.state_dir import SETTINGS


@dataclass(frozen=True, kw_only=True)
class Carried:
    """Sums over the messages of one site, direction and kind.

    Attributes:
        site: name of the site; empty where no admitted site can be told.
        direction: ``up`` or ``down``.
        kind: ``state``, ``update``, ``report``, ``failure`` or ``late``.
        messages: how many there are.
        payload_bytes: bytes of whole envelopes.
        protocol_bytes: bytes that Flower carried with them.
    """

    site: str
    direction: str
    kind: str
    messages: int
    payload_bytes: int
    protocol_bytes: int


@dataclass(frozen=True, kw_only=True)
class KnownSite:
    """Holds what the ledger has of a site that was admitted at least once.

    Attributes:
        site: name of the site.
        node: id of the node behind which it was seen last.
        version: version that it holds; None if it holds nothing.
        examples: training examples of its last update.
        rate: bytes per second of its last exchange; 0 if not known.
    """

    site: str
    node: str
    version: int | None
    examples: int
    rate: float


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A reply that was not admitted, or a failure that a site reported.

    Attributes:
        round: number of the round.
        node: id of the node.
        site: name of the site, as somebody sent it.
        code: the reason.
        message: text for people, as somebody sent it.
        at: seconds since 1970.
    """

    round: int
    node: str
    site: str
    code: str
    message: str
    at: float


class WatchReader(LedgerReader):
    """Adds a watcher's queries to a ``LedgerReader``.

    A state directory whose ledger is yet to come reads as empty; one of an older version is read from a copy in memory.

    Args:
        folder: state directory.

    Raises:
        ConfigError: the folder is no state directory.
        StateError: its ledger cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / LEDGER).is_file() and (folder / SETTINGS).is_file():
            self.folder = folder
            self._db = _open_current(None)
            return
        super().__init__(folder)
        if not _columns(self._db) >= _columns(_open_current(None)):
            older = self._db
            self._db = _open_current(older)
            older.close()

    @contextmanager
    def one_look(self) -> Iterator[None]:
        """Make all queries of the block see the same commit."""
        self._rows("BEGIN")
        try:
            yield
        finally:
            self._rows("ROLLBACK")

    def known_sites(self, run: str) -> list[KnownSite]:
        """Return the sites that were admitted at least once, by name."""
        query = "SELECT site, node, acked, examples, rate FROM site WHERE run=? ORDER BY site"
        return [KnownSite(site=s, node=n, version=a, examples=e, rate=r) for s, n, a, e, r in self._rows(query, run)]

    def names(self, run: str) -> dict[str, str]:
        """Return which site was last seen behind each node."""
        asked = "SELECT node, site FROM task WHERE run=? AND site<>'' ORDER BY id"
        now = "SELECT node, site FROM site WHERE run=?"
        return {node: site for query in (asked, now) for node, site in self._rows(query, run)}

    def carried(self, run: str) -> list[Carried]:
        """Sum all messages by site, direction and kind. Sites that were never admitted share the empty name."""
        known = {row.site for row in self.known_sites(run)}
        names = self.names(run)
        sums: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
        rows = self._rows(
            "SELECT site, node, direction, kind, COUNT(*), SUM(payload), SUM(protocol) FROM message WHERE run=?"
            " GROUP BY site, node, direction, kind",
            run,
        )
        for site, node, direction, kind, *counts in rows:
            name = site if site in known else names.get(node, "")
            total = sums[name if name in known else "", direction, kind]
            for i, count in enumerate(counts):
                total[i] += count
        return [
            Carried(site=site, direction=way, kind=kind, messages=n, payload_bytes=payload, protocol_bytes=protocol)
            for (site, way, kind), (n, payload, protocol) in sorted(sums.items())
        ]

    def last_merged(self, run: str) -> dict[str, int]:
        """Return the last round that merged an update of each site."""
        return dict(self._rows("SELECT site, MAX(round) FROM merged WHERE run=? GROUP BY site", run))

    def count_tasks(self, run: str, round_: int) -> int:
        """Return how many nodes were asked in a round so far."""
        return int(self._rows("SELECT COUNT(*) FROM task WHERE run=? AND round=?", run, round_)[0][0])

    def refusals_by_code(self, run: str) -> dict[str, int]:
        """Count the refusals of each reason, the most frequent first."""
        query = "SELECT code, COUNT(*) FROM refusal WHERE run=? GROUP BY code ORDER BY 2 DESC, 1"
        return dict(self._rows(query, run))

    def refusals_by_site(self, run: str) -> dict[str, int]:
        """Count the refusals of each admitted site; the node tells whose it was where no name was given."""
        known = {row.site for row in self.known_sites(run)}
        names = self.names(run)
        counts = defaultdict[str, int](int)
        query = "SELECT site, node, COUNT(*) FROM refusal WHERE run=? GROUP BY site, node"
        for site, node, count in self._rows(query, run):
            name = site if site in known else names.get(node, "")
            counts[name if name in known else ""] += count
        return dict(counts)

    def last_refusals(self, run: str, limit: int) -> list[Refusal]:
        """Return the last refusals, at most ``limit``, the newest first."""
        query = "SELECT round, node, site, code, message, at FROM refusal WHERE run=? ORDER BY id DESC LIMIT ?"
        rows = self._rows(query, run, limit)
        return [Refusal(round=r, node=n, site=s, code=c, message=m, at=at) for r, n, s, c, m, at in rows]


def _columns(database: sqlite3.Connection) -> set[tuple[str, str]]:
    query = "SELECT t.name, c.name FROM sqlite_master t, pragma_table_info(t.name) c WHERE t.type='table'"
    return set(database.execute(query).fetchall())


def _open_current(source: sqlite3.Connection | None) -> sqlite3.Connection:
    """Open a ledger in memory that has all columns of today: a copy of ``source``, or empty."""
    database = sqlite3.connect(":memory:", isolation_level=None)
    if source is not None:
        source.backup(database)
    database.executescript(SCHEMA)
    upgrade(database)
    return database
