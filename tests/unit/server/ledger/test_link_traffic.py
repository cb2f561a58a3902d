"""What sites count is kept by round, and what their messages account for is taken off it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedcompress.config.train_task import TrainTask
from server.commands import history as history_command
from server.ledger.link_traffic import MAX, Report, parse_report, record_report
from server.ledger.reader import LedgerReader
from server.ledger.schema import SCHEMA
from server.transport.base import Incoming
from server.watch.metrics import to_prometheus
from server.watch.view import take_snapshot
from tests.unit.server.memory import MemoryTransport, World

JOIN, UP, DOWN = 9000, 700, 300  # bytes besides records: at the start, and of each message


class CountedTransport(MemoryTransport):
    """Sites of which each exchange takes so many bytes more than its records, and which count all of them."""

    counts: dict[int, list[int]]
    silent: frozenset[str] = frozenset()

    def send(self, node: int, task: TrainTask, payload: bytes, signature: str = "") -> int:
        protocol = len(task.to_json())
        self.counts.setdefault(node, [JOIN, 0])[1] += DOWN + len(payload) + protocol
        super().send(node, task, payload, signature)
        return protocol

    def receive(self, timeout: float) -> Iterator[Incoming]:
        for reply in super().receive(timeout):
            up, down = self.counts[reply.node]
            if self.sites[reply.node].name not in self.silent:
                reply.status.update({"wire_life": reply.node >> 2, "wire_up": up, "wire_down": down})
            yield reply
            self.counts[reply.node][0] += UP + len(reply.payload)


def counted(folder: Path, silent: frozenset[str] = frozenset()) -> Path:
    """State directory of a finished run of three sites and four rounds."""
    world = World(folder)
    transport = CountedTransport(world.sites)
    transport.counts, transport.silent = {}, silent
    world.over(transport)
    return folder / "coordinator"


def test_what_is_left_is_what_was_added(tmp_path: Path) -> None:
    """Four rounds and the last evaluation: joining is in the first, the last reply is in none."""
    state = counted(tmp_path)
    with LedgerReader(state) as found:
        rounds, sites, totals = found.rounds("run"), found.sites("run"), found.transport_bytes("run")
    assert [row.uplink_transport_bytes for row in rounds] == [3 * JOIN, 3 * UP, 3 * UP, 3 * UP]
    assert [row.downlink_transport_bytes for row in rounds] == [3 * DOWN] * 4
    assert {row.uplink_transport_bytes for row in sites} == {JOIN + 4 * UP}
    assert {row.downlink_transport_bytes for row in sites} == {5 * DOWN}
    assert totals == {"up": 3 * (JOIN + 4 * UP), "down": 15 * DOWN}


def test_all_who_show_it_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = counted(tmp_path)
    shown = take_snapshot(state)
    assert {way: total.transport_bytes for way, total in shown.totals.items()} == {
        "up": 3 * (JOIN + 4 * UP),
        "down": 15 * DOWN,
    }
    assert sum(r.uplink_transport_bytes or 0 for r in shown.history) == 3 * (JOIN + 3 * UP)
    crossed = sum(t.payload_bytes + t.protocol_bytes + (t.transport_bytes or 0) for t in shown.totals.values())
    row = shown.baselines["bf16"]
    assert row.wire_ratio == pytest.approx((row.uplink_bytes + row.downlink_bytes) / crossed)
    assert row.wire_ratio < row.ratio
    families = text_string_to_metric_families(to_prometheus(shown).decode())
    samples = [s for f in families for s in f.samples if s.name == "fedcompress_transport_bytes_total"]
    assert {(s.labels["site"], s.labels["direction"]): s.value for s in samples}["north", "down"] == 5 * DOWN
    assert history_command.run(history_command.Options(state=str(state), as_json=True)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["transport"] == {"up": 3 * (JOIN + 4 * UP), "down": 15 * DOWN}
    assert printed["protocol"]["down"] == shown.totals["down"].protocol_bytes


def test_each_site_in_each_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows by site and round add up to those by round, to those by site, and to all; so do the baselines."""
    state = counted(tmp_path, frozenset({"south"}))
    with sqlite3.connect(state / "ledger.db") as database:  # from somebody who says to be a site, and is none
        columns = "run, round, node, site, direction, kind, payload, digest, at, protocol"
        database.execute(
            f"INSERT INTO message ({columns}) VALUES ('run', 2, '9', '\x1b[2J', 'up', 'update', 77, '', 0, 7)"
        )
    with LedgerReader(state) as found:
        rows, rounds, sites = found.site_rounds("run"), found.rounds("run"), found.sites("run")
        totals = {"": found.payload_bytes("run"), "protocol_": found.protocol_bytes("run")}
        layout, plain = found.layout("run"), found.baseline_bytes("run")
    assert [(row.round, row.site) for row in rows if row.site] == [
        (round_, site) for round_ in range(1, 6) for site in ("north", "south", "west")
    ]
    (nobody,) = (row for row in rows if not row.site)
    assert (nobody.round, nobody.uplink_bytes, nobody.uplink_protocol_bytes) == (2, 77, 7)
    for way, short in (("uplink", "up"), ("downlink", "down")):
        for kind in ("", "protocol_", "transport_"):
            name = f"{way}_{kind}bytes"
            values = {(row.round, row.site): getattr(row, name) for row in rows}
            assert all(
                (value is None) == (kind == "transport_" and s in ("", "south")) for (_, s), value in values.items()
            )
            for row in rounds:
                assert getattr(row, name) == sum(v or 0 for (r, _), v in values.items() if r == row.round)
            for site in sites:
                assert (getattr(site, name) or 0) == sum(v or 0 for (_, s), v in values.items() if s == site.site)
            if kind in totals:
                assert totals[kind][short] == sum(values.values())
        for dtype, size in (("bf16", 2), ("fp32", 4), ("int8", 1)):
            tensors = {(row.round, row.site): row.baseline_bytes[dtype][short] for row in rows}
            per_message = size * layout.numel
            assert {v for (r, s), v in tensors.items() if s and r < 5} == {per_message}
            assert tensors[5, "north"] == (0 if short == "up" else per_message), "a report holds no tensors"
            assert [row.baseline_bytes[dtype][short] for row in rounds] == [
                sum(v for (r, _), v in tensors.items() if r == row.round) for row in rounds
            ]
            assert plain[dtype][short] == sum(tensors.values())
    shown = take_snapshot(state)
    assert {d: {"up": b.uplink_bytes, "down": b.downlink_bytes} for d, b in shown.baselines.items()} == plain
    assert history_command.run(history_command.Options(state=str(state), site_rounds=True, as_json=True)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["site_rounds"][0]["baseline_bytes"] == rows[0].baseline_bytes
    assert printed["baseline_bytes"] == plain
    assert history_command.run(history_command.Options(state=str(state), site_rounds=True)) == 0
    text = capsys.readouterr().out
    assert "(never admitted)" in text
    assert "\x1b" not in text


def test_sites_that_do_not_count(tmp_path: Path) -> None:
    shown = take_snapshot(counted(tmp_path, frozenset({"south"})))
    by_name = {site.site: site.uplink_transport_bytes for site in shown.sites}
    assert by_name == {"north": JOIN + 4 * UP, "south": None, "west": JOIN + 4 * UP}
    assert shown.baselines["bf16"].wire_ratio is None
    nobody = take_snapshot(counted(tmp_path / "nobody", frozenset(by_name)))
    assert nobody.totals["up"].transport_bytes is None
    assert {row.uplink_transport_bytes for row in nobody.history} == {None}


@pytest.fixture
def database() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    connection.executescript(SCHEMA)
    yield connection
    connection.close()


def message(database: sqlite3.Connection, way: str, payload: int, node: int = 1) -> None:
    values = ("run", 1, str(node), "north", way, "update", payload, "", 0.0, 10)
    columns = "run, round, node, site, direction, kind, payload, digest, at, protocol"
    database.execute(f"INSERT INTO message ({columns}) VALUES ({', '.join('?' * 10)})", values)


def kept(database: sqlite3.Connection) -> list[Any]:
    return database.execute("SELECT up, down, carried_up, carried_down FROM wire ORDER BY id").fetchall()


def test_a_new_life_and_a_count_that_went_back(database: sqlite3.Connection) -> None:
    reports = [Report(1, 100, 500), Report(1, 1400, 900), Report(2, 50, 400), Report(2, 40, 300), Report(2, 60, 310)]
    for report in reports:
        message(database, "down", 300)
        message(database, "down", 7777, node=2)  # another site's
        message(database, "up", 1000)
        record_report(database, "run", 1, "north", 1, report)
    assert kept(database) == [
        (100, 500, 0, 310),
        (1300, 400, 1010, 310),
        (50, 400, 0, 310),
        (0, 0, 1010, 310),
        (20, 10, 1010, 310),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"wire_up": -1},
        {"wire_up": MAX},
        {"wire_down": "5"},
        {"wire_life": 1 << 63},
        {"wire_up": True},
        {"wire_up": 1.5},
    ],
)
def test_numbers_that_make_no_sense_are_none(change: dict[str, Any]) -> None:
    good = {"wire_life": 3, "wire_up": 5, "wire_down": 7}
    assert parse_report(good) == Report(3, 5, 7)
    assert parse_report({**good, **change}) is None
    assert parse_report({}) is None
