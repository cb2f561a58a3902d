"""What sites say has crossed their links: each reply brings the site's count, and rows here hold what came between two.

A site counts from the start of its ``up``, so a first report covers all since then: joining, the app, polling. A reply
is sent after its count was taken, so the next report covers it. What a row's messages account for, as Flower's records
have them, is kept beside it; the rest is transport: HTTP, TLS, polling, heartbeats and whatever went twice.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX = 1 << 53  # bytes; JSON has no larger whole numbers


@dataclass(frozen=True)
class Report:
    """A site's count: bytes since ``life`` began."""

    life: int
    up: int
    down: int


def report_of(status: Mapping[str, Any]) -> Report | None:
    """The count in a reply's status; None if there is none that makes sense."""
    values = [status.get(f"wire_{name}") for name in ("life", "up", "down")]
    if not all(type(value) is int for value in values):
        return None
    life, up, down = (int(str(value)) for value in values)
    return Report(life, up, down) if 0 <= life < 1 << 63 and 0 <= up < MAX and 0 <= down < MAX else None


def record_report(database: sqlite3.Connection, run: str, round_: int, site: str, node: int, report: Report) -> None:
    """Keep what has crossed a site's link since its last report. The reply that brings it must be recorded already."""
    own, who = "SELECT COALESCE(MAX(id), 0) FROM message WHERE node=? AND direction='up'", str(node)
    newest = int(database.execute(own, (who,)).fetchone()[0])
    query = "SELECT life, total_up, total_down, message FROM wire WHERE site=? ORDER BY id DESC LIMIT 1"
    life, up, down, message = database.execute(query, (site,)).fetchone() or (-1, 0, 0, 0)
    is_same = life == report.life
    if not is_same:
        up, down = 0, 0
    # the reply of the last report was sent after it; one of another life is in no count
    first = message if is_same else message + 1
    carried = [_carried(database, who, way, first, newest) for way in ("up", "down")]
    since = (max(0, report.up - up), max(0, report.down - down))
    columns = "run, round, site, life, total_up, total_down, up, down, carried_up, carried_down, message, at"
    values = (run, round_, site, report.life, report.up, report.down, *since, *carried, newest, time.time())
    database.execute(f"INSERT INTO wire ({columns}) VALUES ({', '.join('?' * len(values))})", values)


def _carried(database: sqlite3.Connection, node: str, direction: str, first: int, newest: int) -> int:
    query = "SELECT COALESCE(SUM(payload + protocol), 0) FROM message WHERE node=? AND direction=? AND id>=? AND id<?"
    return int(database.execute(query, (node, direction, first, newest)).fetchone()[0])
