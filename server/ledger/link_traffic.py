"""Keeps what sites report to have crossed their network links, as the bytes between two reports of a site.

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
    """A site's count of the bytes that crossed its link.

    Attributes:
        life: which start of the site's counter this is; counts of different lives cannot be compared.
        up: bytes sent since that life began.
        down: bytes received since that life began.
    """

    life: int
    up: int
    down: int


def parse_report(status: Mapping[str, Any]) -> Report | None:
    """Parse the count in a reply's status; return None if there is none, or one that cannot be."""
    values = [status.get(f"wire_{name}") for name in ("life", "up", "down")]
    if not all(type(value) is int for value in values):
        return None
    life, up, down = (int(str(value)) for value in values)
    is_possible = 0 <= life < 1 << 63 and 0 <= up < MAX and 0 <= down < MAX
    return Report(life, up, down) if is_possible else None


def record_report(database: sqlite3.Connection, run: str, round_: int, site: str, node: int, report: Report) -> None:
    """Record what has crossed a site's link since its last report.

    Args:
        database: the ledger, in which the reply that brings the report is recorded already.
        run: name of the run.
        round_: number of the round that the reply belongs to.
        site: name of the site.
        node: id of the node behind which it is.
        report: its count.
    """
    newest_reply = "SELECT COALESCE(MAX(id), 0) FROM message WHERE node=? AND direction='up'"
    newest = int(database.execute(newest_reply, (str(node),)).fetchone()[0])
    query = "SELECT life, total_up, total_down, message FROM wire WHERE site=? ORDER BY id DESC LIMIT 1"
    life, up, down, message = database.execute(query, (site,)).fetchone() or (-1, 0, 0, 0)
    is_same_life = life == report.life
    if not is_same_life:
        up = 0
        down = 0
    # The reply of the last report was sent after that report; a reply of another life is in no count.
    first = message if is_same_life else message + 1
    carried = [_sum_carried(database, str(node), way, first=first, end=newest) for way in ("up", "down")]
    since = (max(0, report.up - up), max(0, report.down - down))
    columns = "run, round, site, life, total_up, total_down, up, down, carried_up, carried_down, message, at"
    values = (run, round_, site, report.life, report.up, report.down, *since, *carried, newest, time.time())
    database.execute(f"INSERT INTO wire ({columns}) VALUES ({', '.join('?' * len(values))})", values)


def _sum_carried(database: sqlite3.Connection, node: str, direction: str, *, first: int, end: int) -> int:
    """Return the bytes that messages ``first`` to ``end - 1`` of a node account for in one direction."""
    query = "SELECT COALESCE(SUM(payload + protocol), 0) FROM message WHERE node=? AND direction=? AND id>=? AND id<?"
    return int(database.execute(query, (node, direction, first, end)).fetchone()[0])
