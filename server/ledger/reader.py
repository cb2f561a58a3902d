"""What the ledger and the events of a state directory say. Reads only, also while a coordinator writes."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fedcompress.errors import ConfigError, StateError
from fedcompress.types import Layout
from server.ledger.quality import Quality, pool_quality
from server.ledger.recovery import LEDGER
from server.ledger.traffic import TENSORS, WAYS, Baselines, Crossed, SiteRound, Sums, baselines, crossed
from server.state_dir import EVENTS

Evaluated = dict[int, dict[str, dict[str, float]]]  # round -> site -> metric -> value
TAIL = 4 << 20  # bytes of the events that are looked at
NOBODY = (None, None)  # what has crossed the links of sites that do not count
SUMS = f"SUM(payload), SUM(protocol), SUM(kind IN ({', '.join(map(repr, TENSORS))}))"


@dataclass(frozen=True, kw_only=True)
class RoundRow(Crossed):
    """One committed round; ``quality`` is that of the version it made, once somebody has evaluated that.

    ``late`` counts updates from older versions among the merged.
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
        """Of the quality, if there is one."""
        return self.quality.accuracy if self.quality else None

    @property
    def loss(self) -> float | None:
        """Of the quality, if there is one."""
        return self.quality.loss if self.quality else None


@dataclass(frozen=True, kw_only=True)
class SiteTotals(Crossed):
    """What is known of a site over all rounds."""

    site: str
    acked: int | None
    messages: int
    refused: int
    last_at: float | None


@dataclass(frozen=True, kw_only=True)
class Awaited:
    """A node that was asked and has not answered; ``site`` is empty if it is not known whose it is."""

    round: int
    node: str
    site: str
    since: float
    until: float


class LedgerReader:
    """Reading queries over the ledger of a state directory. Use it as a context manager.

    Raises:
        ConfigError: there is no ledger.
        StateError: it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LEDGER
        if not path.is_file():
            raise ConfigError("DIR", folder, f"must be a coordinator's state directory: it has no {LEDGER}")
        self.folder = folder
        self._db = _opened(path.resolve())

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
        """Names of all runs, the latest begun last."""
        return [str(name) for (name,) in self._rows("SELECT run FROM run ORDER BY rowid")]

    def run_row(self, run: str) -> tuple[str, str, str]:
        """Layout and adapter config as JSON, and the base's fingerprint in hex; all empty if there is no such run."""
        rows = self._rows("SELECT layout, adapter_config, base_fingerprint FROM run WHERE run=?", run)
        return rows[0] if rows else ("", "", "")

    def layout(self, run: str) -> Layout | None:
        """What the run trains; None before it began."""
        text, _, _ = self.run_row(run)
        return Layout.from_json(text) if text else None

    def rounds_done(self, run: str) -> int:
        """Number of the last committed round; 0 if there is none."""
        return int(self._rows("SELECT MAX(round) FROM round WHERE run=?", run)[0][0] or 0)

    def versions(self, run: str) -> list[tuple[int, str, str, str | None]]:
        """Number, digest in hex, envelope's and state's blob of every version; only the newest has a state."""
        query = "SELECT version, digest, envelope, state FROM version WHERE run=? ORDER BY version"
        return [(v, digest, envelope, state) for v, digest, envelope, state in self._rows(query, run)]

    def payload_bytes(self, run: str) -> dict[str, int]:
        """Payload bytes of each direction, in all rounds."""
        return {way: sums.payload for way, sums in self._sums(run).items()}

    def protocol_bytes(self, run: str) -> dict[str, int]:
        """What Flower's records add in each direction, in all rounds."""
        return {way: sums.protocol for way, sums in self._sums(run).items()}

    def baseline_bytes(self, run: str) -> Baselines:
        """What the messages of all rounds would take with every tensor uncompressed, by dtype and direction."""
        return baselines(self.layout(run), {way: sums.tensors for way, sums in self._sums(run).items()})

    def _sums(self, run: str) -> dict[str, Sums]:
        rows = self._rows(f"SELECT direction, {SUMS} FROM message WHERE run=? GROUP BY direction", run)
        found = {way: Sums(*sums) for way, *sums in rows}
        return {way: found.get(way, Sums()) for way in WAYS}

    def rounds(self, run: str) -> list[RoundRow]:
        """All committed rounds."""
        query = f"SELECT round, direction, {SUMS} FROM message WHERE run=? GROUP BY round, direction"
        carried = {(round_, way): Sums(*sums) for round_, way, *sums in self._rows(query, run)}
        refused = dict(self._rows("SELECT round, COUNT(*) FROM refusal WHERE run=? GROUP BY round", run))
        quality, late, layout = dict(self.quality(run)), self.late(run), self.layout(run)
        transport, out = self.transport(run, "round"), []
        for round_, version, asked, merged, seconds, at in self._rows(
            "SELECT round, version, asked, merged, seconds, at FROM round WHERE run=? ORDER BY round", run
        ):
            up, down = (carried.get((round_, way), Sums()) for way in WAYS)
            out.append(
                RoundRow(
                    round=round_,
                    version=version,
                    asked=asked,
                    merged=merged,
                    late=late.get(round_, 0),
                    refused=refused.get(round_, 0),
                    **crossed(up, down, transport.get(round_, NOBODY), layout),
                    seconds=seconds,
                    at=at,
                    quality=quality.get(version),
                )
            )
        return out

    def site_rounds(self, run: str) -> list[SiteRound]:
        """Each site in each round that had messages of it, the open round and the last evaluation too."""
        behind = {node: site for site, node in self._rows("SELECT site, node FROM site WHERE run=?", run)}
        known, carried = set(behind.values()), defaultdict[tuple[int, str, str], Sums](Sums)
        columns = "round, site, node, direction"
        for round_, site, node, way, *sums in self._rows(
            f"SELECT {columns}, {SUMS} FROM message WHERE run=? GROUP BY {columns}", run
        ):
            name = site or behind.get(node, "")
            carried[round_, name if name in known else "", way] += Sums(*sums)
        layout, transport = self.layout(run), self.transport(run, "round, site")
        return [
            SiteRound(
                round=key[0],
                site=key[1],
                **crossed(carried[*key, "up"], carried[*key, "down"], transport.get(key, NOBODY), layout),
            )
            for key in sorted({(round_, site) for round_, site, _ in carried})
        ]

    def late(self, run: str) -> dict[int, int]:
        """How many updates of a round were trained from an older version than the one that it began with."""
        query = (
            "SELECT m.round, COUNT(*) FROM merged m JOIN round r ON r.run=m.run AND r.round=m.round"
            " WHERE m.run=? AND m.trained_version < r.version - 1 GROUP BY m.round"
        )
        return dict(self._rows(query, run))

    def transport(self, run: str, by: str) -> dict[Any, tuple[int, int]]:
        """Bytes up and down that crossed the links of sites besides Flower's records, by columns: one, or a tuple.

        Only of sites that count, and up to the last reply of each.
        """
        if not self._rows("SELECT 1 FROM sqlite_master WHERE name='wire'"):
            return {}  # a ledger from before it
        sums = "SUM(MAX(0, up - carried_up)), SUM(MAX(0, down - carried_down))"
        rows = self._rows(f"SELECT {by}, {sums} FROM wire WHERE run=? GROUP BY {by}", run)
        return {tuple(key) if len(key) > 1 else key[0]: (up, down) for *key, up, down in rows}

    def transport_bytes(self, run: str) -> dict[str, int | None]:
        """The same of each direction, in all rounds; None if no site has counted."""
        found = list(self.transport(run, "site").values())
        return {way: sum(row[i] for row in found) if found else None for i, way in enumerate(("up", "down"))}

    def evaluated(self, run: str) -> Evaluated:
        """What sites measured on held-out rows, by round and site, of the version that they were sent then."""
        found: Evaluated = defaultdict(lambda: defaultdict(dict))
        query = "SELECT round, site, name, value FROM metric WHERE run=? AND name GLOB 'eval_*' ORDER BY round, site"
        for round_, site, name, value in self._rows(query, run):
            found[round_][site][name] = value
        return found

    def quality(self, run: str) -> list[tuple[int, Quality]]:
        """Versions that were evaluated: sites measure, in a round, the version that it starts from."""
        made = dict(self._rows("SELECT round, version FROM round WHERE run=?", run))
        pooled = [
            (made.get(r - 1, 0 if r == 1 else -1), pool_quality(sites.values()))
            for r, sites in self.evaluated(run).items()
        ]
        return [(version, quality) for version, quality in pooled if quality is not None and version >= 0]

    def sites(self, run: str) -> list[SiteTotals]:
        """All sites that have taken part, by name."""
        name = "COALESCE(NULLIF(m.site, ''), s.site)"
        join = "m LEFT JOIN site s ON s.run=m.run AND s.node=m.node"
        carried = self._rows(
            f"SELECT {name}, m.direction, COUNT(*), MAX(m.at), {SUMS} FROM message {join}"
            f" WHERE m.run=? GROUP BY {name}, m.direction",
            run,
        )
        by_way = {(site, way): (count, last, Sums(*sums)) for site, way, count, last, *sums in carried}
        refused = dict(self._rows(f"SELECT {name}, COUNT(*) FROM refusal {join} WHERE m.run=? GROUP BY {name}", run))
        layout, transport, out = self.layout(run), self.transport(run, "site"), []
        for site, acked in self._rows("SELECT site, acked FROM site WHERE run=? ORDER BY site", run):
            up, down = (by_way.get((site, way), (0, None, Sums())) for way in WAYS)
            out.append(
                SiteTotals(
                    site=site,
                    acked=acked,
                    messages=up[0],
                    **crossed(up[2], down[2], transport.get(site, NOBODY), layout),
                    refused=refused.get(site, 0),
                    last_at=up[1],
                )
            )
        return out

    def refusals(self, run: str) -> list[dict[str, Any]]:
        """All refusals, in order."""
        keys = ("round", "node", "site", "code", "message", "at")
        query = f"SELECT {', '.join(keys)} FROM refusal WHERE run=? ORDER BY id"
        return [dict(zip(keys, row, strict=True)) for row in self._rows(query, run)]

    def awaited(self, run: str) -> list[Awaited]:
        """Which nodes were asked and have not answered, as the coordinator that ran last had it."""
        if not self._rows("SELECT 1 FROM sqlite_master WHERE name='task'"):
            return []  # a ledger from before it
        rows = self._rows(
            "SELECT t.round, t.node, COALESCE(NULLIF(t.site, ''), s.site, ''), t.sent, t.until FROM task t"
            " LEFT JOIN site s ON s.run=t.run AND s.node=t.node"
            " WHERE t.run=? AND t.outcome='open' ORDER BY t.round, 3, t.node",
            run,
        )
        return [Awaited(round=r, node=n, site=s, since=sent, until=until) for r, n, s, sent, until in rows]


def _opened(path: Path) -> sqlite3.Connection:
    """A ledger, to read only; by users who may not write its folder, once nobody writes it."""
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
    """The last events of a run (of all, if it is empty), in order."""
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
    """An event from its line; nothing if it is torn."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) and "event" in event else {}


def since_start(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events of the last process of the coordinator."""
    starts = [i for i, event in enumerate(events) if event["event"] == "start"]
    return list(events[starts[-1] :]) if starts else list(events)
