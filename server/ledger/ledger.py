"""The coordinator's ledger has everything that was published, sent, received, merged and refused.

A round is one transaction. If the coordinator is killed before it, the round is done again and the sites answer from
their outboxes; if it is killed after it, the next round begins.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedcompress.storage.failpoints import failpoint
from server.ledger.link_traffic import parse_report, record_report
from server.ledger.recovery import copy_ledger
from server.ledger.versions import VersionLedger

# Reasons of refusals whose site the coordinator knows. With all other reasons the site is only what the reply claims.
OWN_CODES = ("deadline", "stale", "norm")
MAX_MESSAGE = 2000  # characters of a refusal's text that are kept
MAX_TOLD = 3  # refusals that a site is told with its next task
MAX_TOLD_TEXT = 200  # characters of each refusal that a site is told


@dataclass(frozen=True)
class SiteRow:
    """Holds what is known about a site that was admitted at least once.

    Attributes:
        site: name of the site.
        node: id of the node behind which it was seen last.
        acked: version that it holds; None if it holds nothing.
        merged: digest of its last merged update, hex; empty if there is none.
        examples: training examples of its last update.
        rate: bytes per second of its last exchange; 0 if not known.
    """

    site: str
    node: int
    acked: int | None
    merged: str
    examples: int = 0
    rate: float = 0.0


@dataclass(frozen=True)
class MergedRow:
    """An update that a round has merged.

    Attributes:
        site: name of the site.
        digest: digest of the update's envelope, hex.
        trained_version: version that it was trained from.
        norm: Euclidean norm of the update.
    """

    site: str
    digest: str
    trained_version: int
    norm: float


class Ledger(VersionLedger):
    """Keeps the books of one run: rounds, tasks, messages, refusals, metrics and sites, besides its versions."""

    # Rounds

    @property
    def rounds_done(self) -> int:
        """Return the number of the last committed round; 0 if there is none."""
        row = self._db.execute("SELECT MAX(round) FROM round WHERE run=?", (self.run,)).fetchone()
        return int(row[0] or 0)

    def end_round(self, round_: int, version: int, asked: int, merged: Sequence[MergedRow], seconds: float) -> None:
        """Record a round and the updates that it merged. Call it in a transaction.

        Args:
            round_: number of the round.
            version: version that it has published.
            asked: nodes that were asked.
            merged: the updates, in the order of arrival.
            seconds: from the beginning of the round to its commit.
        """
        self._db.execute(
            "INSERT INTO round VALUES (?, ?, ?, ?, ?, ?, ?)",
            (self.run, round_, version, asked, len(merged), seconds, time.time()),
        )
        for row in merged:
            values = (self.run, round_, row.site, row.digest, row.trained_version, row.norm)
            self._db.execute("INSERT INTO merged VALUES (?, ?, ?, ?, ?, ?)", values)
            self._db.execute("UPDATE site SET merged=? WHERE run=? AND site=?", (row.digest, self.run, row.site))
        failpoint("server.before-commit")

    def merged_since(self, round_: int) -> set[str]:
        """Return the sites of which this round or a later one has merged an update."""
        rows = self._db.execute("SELECT site FROM merged WHERE run=? AND round>=?", (self.run, round_))
        return {site for (site,) in rows}

    def last_merged(self, count: int) -> list[str]:
        """Return the sites of the last ``count`` merged updates, the newest first."""
        query = "SELECT site FROM merged WHERE run=? ORDER BY round DESC, rowid DESC LIMIT ?"
        return [site for (site,) in self._db.execute(query, (self.run, max(count, 0)))]

    def norms(self, last: int) -> dict[str, float]:
        """Return the Euclidean norm of each site's newest update of those that the last ``last`` rounds have merged."""
        rows = self._db.execute(
            "SELECT site, norm FROM merged WHERE run=? AND"
            " round>(SELECT COALESCE(MAX(round), 0) FROM round WHERE run=?) - ? ORDER BY round",
            (self.run, self.run, last),
        )
        return dict(rows.fetchall())

    def copy(self) -> None:
        """Copy the ledger beside itself, for the case that a disk damages it."""
        copy_ledger(self._db, self._folder, self.rounds_done)

    # Tasks

    def open_task(self, round_: int, version: int, node: int, site: str, seconds: float) -> int:
        """Record that a node is asked, and that its reply is awaited.

        Args:
            round_: number of the round.
            version: version that the node is to train from.
            node: id of the node.
            site: name of the site behind it; empty if it is not known.
            seconds: for how long the reply is awaited.

        Returns:
            The number of the task, to close it by.
        """
        now = time.time()
        values = (self.run, round_, version, str(node), site, now, now + seconds)
        cursor = self._db.execute(
            "INSERT INTO task (run, round, version, node, site, sent, until) VALUES (?, ?, ?, ?, ?, ?, ?)", values
        )
        return int(cursor.lastrowid or 0)

    def close_task(self, number: int, outcome: str, site: str = "") -> None:
        """Record that the reply to a task is no longer awaited.

        Args:
            number: what ``open_task`` has returned.
            outcome: how it ended: ``admitted``, ``refused``, ``resent``, ``deadline``, ``stale``, ``surplus``, ``lost``
                or ``finished``.
            site: name of the site, where the reply has told it; empty keeps the name that the task has.
        """
        self._db.execute(
            "UPDATE task SET closed=?, outcome=?, site=CASE WHEN ?='' THEN site ELSE ? END WHERE id=?",
            (time.time(), outcome, site, site, number),
        )

    def extend_tasks(self, seconds: float) -> None:
        """Set the deadline of all open tasks to ``seconds`` from now."""
        self._db.execute("UPDATE task SET until=? WHERE run=? AND outcome='open'", (time.time() + seconds, self.run))

    def close_tasks(self, outcome: str) -> None:
        """Close all open tasks with one outcome, such as ``lost`` after the process that awaited them was killed."""
        self._db.execute(
            "UPDATE task SET closed=?, outcome=? WHERE run=? AND outcome='open'", (time.time(), outcome, self.run)
        )

    # Messages, refusals and metrics

    def record_message(
        self, round_: int, node: int, site: str, direction: str, kind: str, payload: int, digest: str, protocol: int = 0
    ) -> None:
        """Record one message that crossed Flower.

        Args:
            round_: number of the round.
            node: id of the node.
            site: name of the site that it is from or for; empty if it is not known.
            direction: ``up`` to the coordinator, ``down`` to the site.
            kind: ``state``, ``update``, ``report``, ``failure`` or ``late``.
            payload: bytes of the payload, that is, of whole envelopes.
            digest: digest of the payload, hex; empty if there is none.
            protocol: bytes that Flower carried besides the payload.
        """
        self._db.execute(
            "INSERT INTO message (run, round, node, site, direction, kind, payload, digest, at, protocol)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (self.run, round_, str(node), site, direction, kind, payload, digest, time.time(), protocol),
        )

    def record_link_traffic(self, round_: int, node: int, site: str, status: Mapping[str, Any]) -> None:
        """Record what a site says has crossed its network link, if its reply's status says so.

        Args:
            round_: number of the round.
            node: id of the node.
            site: name of the site.
            status: of the reply, whose message must have been recorded already.
        """
        report = parse_report(status)
        if report is not None:
            record_report(self._db, self.run, round_=round_, site=site, node=node, report=report)

    def record_refusal(self, round_: int, node: int, site: str, code: str, message: str) -> None:
        """Record one reply that was not admitted, or a failure that a site reported.

        Args:
            round_: number of the round.
            node: id of the node.
            site: name of the site, as the reply claims it; empty if it claims none.
            code: the reason.
            message: text for people.
        """
        self._db.execute(
            "INSERT INTO refusal (run, round, node, site, code, message, at) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (self.run, round_, str(node), site, code, message[:MAX_MESSAGE], time.time()),
        )

    def record_metrics(self, round_: int, site: str, metrics: dict[str, float]) -> None:
        """Record what a site measured.

        Args:
            round_: number of the round.
            site: name of the site.
            metrics: value by name.
        """
        self._db.executemany(
            "INSERT OR REPLACE INTO metric VALUES (?, ?, ?, ?, ?)",
            [(self.run, round_, site, name, value) for name, value in metrics.items()],
        )

    def payload_bytes(self, direction: str, round_: int | None = None) -> tuple[int, int]:
        """Return the payload bytes of one direction, and how many messages were to carry some.

        Args:
            direction: ``up`` or ``down``.
            round_: number of a round; None counts all rounds.

        Returns:
            Bytes and messages.
        """
        of_round = "" if round_ is None else " AND round=?"
        arguments = () if round_ is None else (round_,)
        row = self._db.execute(
            "SELECT COALESCE(SUM(payload), 0), COALESCE(SUM(kind NOT IN ('failure', 'end')), 0) FROM message"
            f" WHERE run=? AND direction=?{of_round}",
            (self.run, direction, *arguments),
        ).fetchone()
        return int(row[0]), int(row[1])

    # Sites

    def acknowledge(self, site: str, node: int, acked: int | None, examples: int = 0, rate: float = 0.0) -> None:
        """Record which version a site holds, behind which node it is, and how much it has.

        Args:
            site: name of the site.
            node: id of the node.
            acked: version that it holds; None for nothing.
            examples: training examples of its last update.
            rate: bytes per second of its last exchange; 0 if not known.
        """
        self._db.execute(
            "INSERT INTO site (run, site, node, acked, examples, rate) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (run, site) DO UPDATE SET node=excluded.node, acked=excluded.acked,"
            " examples=excluded.examples, rate=excluded.rate",
            (self.run, site, str(node), acked, examples, rate),
        )

    def forget(self, node: int, *, is_other: bool) -> None:
        """Forget which version the site behind a node holds, and, if it ``is_other``, that it is behind this node.

        The site has said so: it does not hold the version that the coordinator believed, or it is another site.
        """
        node_now = ", node='-1'" if is_other else ""
        self._db.execute(f"UPDATE site SET acked=NULL{node_now} WHERE run=? AND node=?", (self.run, str(node)))

    def refused(self, node: int, site: str) -> list[str]:
        """Return what was refused of a node, or of its site, since it was asked last, as the site is told it.

        By the name of the site only refusals with one of ``OWN_CODES`` count: with others the name is only claimed.

        Args:
            node: id of the node.
            site: name of the site behind it; empty if it is not known.

        Returns:
            At most three lines ``ROUND: CODE: MESSAGE``, the newest first.
        """
        own_codes = f" AND code IN ({', '.join(map(repr, OWN_CODES))})"
        keys = [("node", str(node), "")]
        if site:
            keys.append(("site", site, own_codes))
        query = "SELECT COALESCE(MAX(round), 0) FROM task WHERE run=? AND"
        last = max(self._db.execute(f"{query} {key}=?", (self.run, value)).fetchone()[0] for key, value, _ in keys)
        lines: dict[int, str] = {}
        for key, value, condition in keys:
            query = f"SELECT id, round, code, message FROM refusal WHERE run=? AND {key}=? AND round>=?{condition}"
            rows = self._db.execute(f"{query} ORDER BY id DESC LIMIT {MAX_TOLD}", (self.run, value, last))
            for number, round_, code, message in rows:
                lines[number] = f"{round_}: {code}: {message[:MAX_TOLD_TEXT]}"
        return [lines[number] for number in sorted(lines, reverse=True)[:MAX_TOLD]]

    def sites(self) -> list[SiteRow]:
        """Return all sites that were admitted in this run, by name."""
        rows = self._db.execute(
            "SELECT site, node, acked, merged, examples, rate FROM site WHERE run=? ORDER BY site", (self.run,)
        ).fetchall()
        return [SiteRow(site, int(node), *values) for site, node, *values in rows]
