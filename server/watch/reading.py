"""What a watcher asks of the ledger, in one consistent look that neither waits for the coordinator nor holds it up."""

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
    """Messages of one site, direction and kind. ``site`` is empty where no admitted site can be told."""

    site: str
    direction: str  # up or down
    kind: str  # state, update or report
    messages: int
    payload_bytes: int
    protocol_bytes: int  # what Flower carried with them


@dataclass(frozen=True, kw_only=True)
class KnownSite:
    """A row of a site: the version that it holds, what it trained on last, its rate in bytes a second."""

    site: str
    node: str
    version: int | None
    examples: int
    rate: float


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A reply that was not admitted, or a failure; ``site`` and ``message`` are as somebody sent them."""

    round: int
    node: str
    site: str
    code: str
    message: str
    at: float


class Reader(LedgerReader):
    """A ``LedgerReader`` with a watcher's queries.

    A state directory whose ledger is yet to come reads as empty; one of an older version is read from a copy in memory.

    Raises:
        ConfigError: the folder is no state directory.
        StateError: its ledger cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / LEDGER).is_file() and (folder / SETTINGS).is_file():
            self.folder = folder
            self._db = _current(None)
            return
        super().__init__(folder)
        if not _columns(self._db) >= _columns(_current(None)):
            source, self._db = self._db, _current(self._db)
            source.close()

    @contextmanager
    def one_look(self) -> Iterator[None]:
        """All queries of the block see the same commit."""
        self._rows("BEGIN")
        try:
            yield
        finally:
            self._rows("ROLLBACK")

    def known_sites(self, run: str) -> list[KnownSite]:
        """Sites that were admitted at least once, by name."""
        query = "SELECT site, node, acked, examples, rate FROM site WHERE run=? ORDER BY site"
        return [KnownSite(site=s, node=n, version=a, examples=e, rate=r) for s, n, a, e, r in self._rows(query, run)]

    def names(self, run: str) -> dict[str, str]:
        """Which site was last seen behind a node."""
        behind = "SELECT node, site FROM task WHERE run=? AND site<>'' ORDER BY id"
        now = "SELECT node, site FROM site WHERE run=?"
        return {node: site for query in (behind, now) for node, site in self._rows(query, run)}

    def carried(self, run: str) -> list[Carried]:
        """All messages, by site, direction and kind. Sites that were never admitted share the empty name."""
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
        """The last round that merged an update of a site."""
        return dict(self._rows("SELECT site, MAX(round) FROM merged WHERE run=? GROUP BY site", run))

    def tasks_of(self, run: str, round_: int) -> int:
        """How many were asked in a round so far."""
        return int(self._rows("SELECT COUNT(*) FROM task WHERE run=? AND round=?", run, round_)[0][0])

    def refusals_by_code(self, run: str) -> dict[str, int]:
        """How many refusals there are of each reason, the most frequent first."""
        query = "SELECT code, COUNT(*) FROM refusal WHERE run=? GROUP BY code ORDER BY 2 DESC, 1"
        return dict(self._rows(query, run))

    def refusals_by_site(self, run: str) -> dict[str, int]:
        """How many refusals an admitted site has; the node tells where no name was given."""
        known = {row.site for row in self.known_sites(run)}
        names, out = self.names(run), defaultdict[str, int](int)
        query = "SELECT site, node, COUNT(*) FROM refusal WHERE run=? GROUP BY site, node"
        for site, node, count in self._rows(query, run):
            name = site if site in known else names.get(node, "")
            out[name if name in known else ""] += count
        return dict(out)

    def last_refusals(self, run: str, limit: int) -> list[Refusal]:
        """The last refusals, the newest first."""
        query = "SELECT round, node, site, code, message, at FROM refusal WHERE run=? ORDER BY id DESC LIMIT ?"
        rows = self._rows(query, run, limit)
        return [Refusal(round=r, node=n, site=s, code=c, message=m, at=at) for r, n, s, c, m, at in rows]


def _columns(database: sqlite3.Connection) -> set[tuple[str, str]]:
    query = "SELECT t.name, c.name FROM sqlite_master t, pragma_table_info(t.name) c WHERE t.type='table'"
    return set(database.execute(query).fetchall())


def _current(source: sqlite3.Connection | None) -> sqlite3.Connection:
    """A ledger in memory, of the current form: a copy, or empty."""
    database = sqlite3.connect(":memory:", isolation_level=None)
    if source is not None:
        source.backup(database)
    database.executescript(SCHEMA)
    upgrade(database)
    return database
