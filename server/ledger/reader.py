"""The ledger and the events of a state directory are read here, also while a coordinator writes; nothing is changed."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from fedcompress.errors import ConfigError, StateError
from fedcompress.types import Layout
from server.events import RunStarted
from server.ledger.quality import Quality, pool_quality
from server.ledger.recovery import LEDGER
from server.ledger.traffic import (
    TENSORS,
    WAYS,
    Baselines,
    Crossed,
    SiteRound,
    TrafficSums,
    compute_baselines,
    crossed_fields,
)
from server.state_dir import EVENTS

Evaluated = dict[int, dict[str, dict[str, float]]]  # round -> site -> metric -> value
TAIL = 4 << 20  # bytes at the end of the events that are looked at
NOT_COUNTED = (None, None)  # bytes up and down over the links of sites that do not count
# Columns of a query on messages, for ``TrafficSums``.
SUMS = f"SUM(payload), SUM(protocol), SUM(kind IN ({', '.join(map(repr, TENSORS))}))"


@dataclass(frozen=True, kw_only=True)
class RoundRow(Crossed):
    """A committed round.

    Attributes:
        round: number of the round.
        version: version that it has published.
        asked: nodes that were asked.
        merged: updates that were merged.
        late: merged updates that were trained from an older version than the round began with.
        refused: replies that were refused.
        seconds: from its beginning to its commit.
        at: when it was committed, seconds since 1970.
        quality: of the version that it has published; None until somebody has evaluated that.
    """

    round: int
    version: int
    asked: int
    merged: int
    late: int
    refused: int
    seconds: float
    at: float
    quality: Quality | None

    @property
    def accuracy(self) -> float | None:
        """Return the accuracy of the version; None until somebody has evaluated it."""
        return self.quality.accuracy if self.quality else None

    @property
    def loss(self) -> float | None:
        """Return the mean loss of the version in nats; None until somebody has evaluated it."""
        return self.quality.loss if self.quality else None


@dataclass(frozen=True, kw_only=True)
class SiteTotals(Crossed):
    """Sums over all rounds of a site.

    Attributes:
        site: name of the site.
        acked: version that it holds; None if it holds nothing.
        messages: messages that it has sent.
        refused: replies of it that were refused.
        last_at: when its last message came, seconds since 1970; None if none has.
    """

    site: str
    acked: int | None
    messages: int
    refused: int
    last_at: float | None


@dataclass(frozen=True, kw_only=True)
class Awaited:
    """A node that was asked and has not answered.

    Attributes:
        round: number of the round that it was asked in.
        node: id of the node.
        site: name of the site behind it; empty if it is not known.
        since: when it was asked, seconds since 1970.
        until: when its reply is given up, seconds since 1970.
    """

    round: int
    node: str
    site: str
    since: float
    until: float


class VersionRow(NamedTuple):
    """Names a published version and its blobs.

    Attributes:
        version: its number.
        digest: state digest, hex.
        envelope: name of the blob of the envelope that leads to it from the version before.
        state: name of the blob of its whole state, which only the newest versions have; None for the others.
    """

    version: int
    digest: str
    envelope: str
    state: str | None


class LedgerReader:
    """Queries the ledger of a state directory without changing it. Use it as a context manager.

    Args:
        folder: state directory.

    Raises:
        ConfigError: there is no ledger.
        StateError: it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LEDGER
        if not path.is_file():
            raise ConfigError("DIR", folder, f"must be a coordinator's state directory: it has no {LEDGER}")
        self.folder = folder
        self._db = _open_read_only(path.resolve())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._db.close()

    def _rows(self, query: str, *args: Any) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, args).fetchall()
        except sqlite3.DatabaseError as error:
            raise StateError(f"ledger: {self.folder / LEDGER}: cannot be read: {error}") from error

    def runs(self) -> list[str]:
        """Return the names of all runs, the latest begun last."""
        return [str(name) for (name,) in self._rows("SELECT run FROM run ORDER BY rowid")]

    def run_row(self, run: str) -> tuple[str, str, str]:
        """Return layout and adapter config as JSON, and the base's fingerprint in hex; all empty without such a run."""
        rows = self._rows("SELECT layout, adapter_config, base_fingerprint FROM run WHERE run=?", run)
        return rows[0] if rows else ("", "", "")

    def layout(self, run: str) -> Layout | None:
        """Return the layout that the run trains; None before it began."""
        text, _, _ = self.run_row(run)
        return Layout.from_json(text) if text else None

    def rounds_done(self, run: str) -> int:
        """Return the number of the last committed round; 0 if there is none."""
        return int(self._rows("SELECT MAX(round) FROM round WHERE run=?", run)[0][0] or 0)

    def versions(self, run: str) -> list[VersionRow]:
        """Return all versions of a run, in order."""
        query = "SELECT version, digest, envelope, state FROM version WHERE run=? ORDER BY version"
        return [VersionRow(*row) for row in self._rows(query, run)]

    def payload_bytes(self, run: str) -> dict[str, int]:
        """Return the payload bytes of all rounds, by direction."""
        return {way: sums.payload for way, sums in self._sums(run).items()}

    def protocol_bytes(self, run: str) -> dict[str, int]:
        """Return the bytes that Flower's records add to the payload in all rounds, by direction."""
        return {way: sums.protocol for way, sums in self._sums(run).items()}

    def baseline_bytes(self, run: str) -> Baselines:
        """Return the bytes of all rounds with every tensor uncompressed, by dtype and direction."""
        return compute_baselines(self.layout(run), {way: sums.tensors for way, sums in self._sums(run).items()})

    def _sums(self, run: str) -> dict[str, TrafficSums]:
        rows = self._rows(f"SELECT direction, {SUMS} FROM message WHERE run=? GROUP BY direction", run)
        by_way = {way: TrafficSums(*sums) for way, *sums in rows}
        return {way: by_way.get(way, TrafficSums()) for way in WAYS}

    def rounds(self, run: str) -> list[RoundRow]:
        """Return all committed rounds, in order."""
        query = f"SELECT round, direction, {SUMS} FROM message WHERE run=? GROUP BY round, direction"
        carried = {(round_, way): TrafficSums(*sums) for round_, way, *sums in self._rows(query, run)}
        refused = dict(self._rows("SELECT round, COUNT(*) FROM refusal WHERE run=? GROUP BY round", run))
        quality = dict(self.quality(run))
        late = self.late(run)
        layout = self.layout(run)
        transport = self.transport(run, "round")
        rounds = []
        for round_, version, asked, merged, seconds, at in self._rows(
            "SELECT round, version, asked, merged, seconds, at FROM round WHERE run=? ORDER BY round", run
        ):
            up, down = (carried.get((round_, way), TrafficSums()) for way in WAYS)
            rounds.append(
                RoundRow(
                    round=round_,
                    version=version,
                    asked=asked,
                    merged=merged,
                    late=late.get(round_, 0),
                    refused=refused.get(round_, 0),
                    **crossed_fields(up, down, transport.get(round_, NOT_COUNTED), layout),
                    seconds=seconds,
                    at=at,
                    quality=quality.get(version),
                )
            )
        return rounds

    def site_rounds(self, run: str) -> list[SiteRound]:
        """Return each site in each round that had messages of it, the open round and the last evaluation too."""
        by_node = {node: site for site, node in self._rows("SELECT site, node FROM site WHERE run=?", run)}
        known = set(by_node.values())
        carried = defaultdict[tuple[int, str, str], TrafficSums](TrafficSums)
        columns = "round, site, node, direction"
        for round_, site, node, way, *sums in self._rows(
            f"SELECT {columns}, {SUMS} FROM message WHERE run=? GROUP BY {columns}", run
        ):
            name = site or by_node.get(node, "")
            carried[round_, name if name in known else "", way] += TrafficSums(*sums)
        layout, transport = self.layout(run), self.transport(run, "round, site")
        return [
            SiteRound(
                round=key[0],
                site=key[1],
                **crossed_fields(carried[*key, "up"], carried[*key, "down"], transport.get(key, NOT_COUNTED), layout),
            )
            for key in sorted({(round_, site) for round_, site, _ in carried})
        ]

    def late(self, run: str) -> dict[int, int]:
        """Count, by round, the merged updates that were trained from an older version than the round began with."""
        query = (
            "SELECT m.round, COUNT(*) FROM merged m JOIN round r ON r.run=m.run AND r.round=m.round"
            " WHERE m.run=? AND m.trained_version < r.version - 1 GROUP BY m.round"
        )
        return dict(self._rows(query, run))

    def transport(self, run: str, by: str) -> dict[Any, tuple[int, int]]:
        """Sum the bytes that crossed the links of sites besides Flower's records.

        Only sites that count are in it, each up to its last reply.

        Args:
            run: name of the run.
            by: columns to group by: ``site``, ``round``, or several with commas.

        Returns:
            Bytes up and down, by the value of the column, or by a tuple of several.
        """
        if not self._rows("SELECT 1 FROM sqlite_master WHERE name='wire'"):
            return {}  # an older ledger does not have the table
        sums = "SUM(MAX(0, up - carried_up)), SUM(MAX(0, down - carried_down))"
        rows = self._rows(f"SELECT {by}, {sums} FROM wire WHERE run=? GROUP BY {by}", run)
        return {tuple(key) if len(key) > 1 else key[0]: (up, down) for *key, up, down in rows}

    def transport_bytes(self, run: str) -> dict[str, int | None]:
        """Return the bytes that crossed links besides Flower's records in all rounds, by direction.

        They are None if no site has counted.
        """
        counts = list(self.transport(run, "site").values())
        if not counts:
            return dict.fromkeys(WAYS)
        return {way: sum(count[i] for count in counts) for i, way in enumerate(WAYS)}

    def evaluated(self, run: str) -> Evaluated:
        """Return what sites measured on held-out rows, by round and site, of the version that they were sent then."""
        evaluated: Evaluated = defaultdict(lambda: defaultdict(dict))
        query = "SELECT round, site, name, value FROM metric WHERE run=? AND name GLOB 'eval_*' ORDER BY round, site"
        for round_, site, name, value in self._rows(query, run):
            evaluated[round_][site][name] = value
        return evaluated

    def quality(self, run: str) -> list[tuple[int, Quality]]:
        """Return the versions that were evaluated, in order, with their quality.

        In a round, sites evaluate the version that the round starts from.
        """
        published_by = dict(self._rows("SELECT round, version FROM round WHERE run=?", run))
        qualities = []
        for round_, sites in self.evaluated(run).items():
            version = published_by.get(round_ - 1, 0 if round_ == 1 else None)
            quality = pool_quality(sites.values())
            if version is not None and quality is not None:
                qualities.append((version, quality))
        return qualities

    def sites(self, run: str) -> list[SiteTotals]:
        """Return all sites that were admitted at least once, by name."""
        name = "COALESCE(NULLIF(m.site, ''), s.site)"
        join = "m LEFT JOIN site s ON s.run=m.run AND s.node=m.node"
        carried = self._rows(
            f"SELECT {name}, m.direction, COUNT(*), MAX(m.at), {SUMS} FROM message {join}"
            f" WHERE m.run=? GROUP BY {name}, m.direction",
            run,
        )
        by_way = {(site, way): (count, last, TrafficSums(*sums)) for site, way, count, last, *sums in carried}
        refused = dict(self._rows(f"SELECT {name}, COUNT(*) FROM refusal {join} WHERE m.run=? GROUP BY {name}", run))
        layout = self.layout(run)
        transport = self.transport(run, "site")
        totals = []
        for site, acked in self._rows("SELECT site, acked FROM site WHERE run=? ORDER BY site", run):
            messages, last_at, up = by_way.get((site, "up"), (0, None, TrafficSums()))
            _, _, down = by_way.get((site, "down"), (0, None, TrafficSums()))
            totals.append(
                SiteTotals(
                    site=site,
                    acked=acked,
                    messages=messages,
                    **crossed_fields(up, down, transport.get(site, NOT_COUNTED), layout),
                    refused=refused.get(site, 0),
                    last_at=last_at,
                )
            )
        return totals

    def refusals(self, run: str) -> list[dict[str, Any]]:
        """Return all refusals of a run as rows of the ledger, in order."""
        keys = ("round", "node", "site", "code", "message", "at")
        query = f"SELECT {', '.join(keys)} FROM refusal WHERE run=? ORDER BY id"
        return [dict(zip(keys, row, strict=True)) for row in self._rows(query, run)]

    def awaited(self, run: str) -> list[Awaited]:
        """Return the nodes that were asked and have not answered, as the coordinator that ran last had it."""
        if not self._rows("SELECT 1 FROM sqlite_master WHERE name='task'"):
            return []  # an older ledger does not have the table
        rows = self._rows(
            "SELECT t.round, t.node, COALESCE(NULLIF(t.site, ''), s.site, ''), t.sent, t.until FROM task t"
            " LEFT JOIN site s ON s.run=t.run AND s.node=t.node"
            " WHERE t.run=? AND t.outcome='open' ORDER BY t.round, 3, t.node",
            run,
        )
        return [Awaited(round=r, node=n, site=s, since=sent, until=until) for r, n, s, sent, until in rows]


def _open_read_only(path: Path) -> sqlite3.Connection:
    """Open a ledger to read only; users who may not write its folder can do so once nobody writes it."""
    wal = path.with_name(f"{path.name}-wal")
    for options in ("mode=ro", "mode=ro&immutable=1"):
        database = sqlite3.connect(f"{path.as_uri()}?{options}", uri=True, isolation_level=None)
        try:
            database.execute("SELECT COUNT(*) FROM sqlite_master")
        except sqlite3.DatabaseError as error:
            database.close()
            # Without the files that it shares with a writer, and which it may not make, SQLite cannot see one.
            if not isinstance(error, sqlite3.OperationalError) or (wal.exists() and wal.stat().st_size):
                raise StateError(f"ledger: {path}: cannot be read: {error}") from error
            cause = error
        else:
            return database
    raise StateError(f"ledger: {path}: cannot be read: {cause}") from cause


def read_events(folder: Path, run: str = "") -> list[dict[str, Any]]:
    """Read the last events of a run, or of all runs if ``run`` is empty, in order."""
    path = folder / EVENTS
    if not path.is_file():
        return []
    with path.open("rb") as stream:
        start = max(0, path.stat().st_size - TAIL)
        stream.seek(start)
        lines = stream.read().splitlines()[1 if start else 0 :]
    events = [event for line in lines if (event := parse_event(line))]
    return [event for event in events if not run or event.get("run", run) == run]


def parse_event(line: bytes) -> dict[str, Any]:
    """Parse an event from its line; return an empty dict if the line is torn."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) and "event" in event else {}


def since_start(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events of the last process of the coordinator."""
    starts = [i for i, event in enumerate(events) if event["event"] == RunStarted.kind]
    return list(events[starts[-1] :]) if starts else list(events)
