"""A snapshot says what the ledger says, while a coordinator writes it, and after."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from fedcompress.errors import ConfigError, StateError
from fedcompress.storage.locks import hold
from server.app import EventLog
from server.coordinator import Coordinator
from server.ledger.quality import pool_quality
from server.state_dir import COORDINATOR_LOCK, EVENTS
from server.watch.reading import WatchReader
from server.watch.view import CODES, OTHER, Snapshot, take_snapshot
from tests.support import ROOT
from tests.unit.server.memory import MemoryTransport, SlowTransport, World
from tests.unit.server.watch.world import HOSTILE, poison, query

SUM = "SELECT COALESCE(SUM(payload), 0), COALESCE(SUM(protocol), 0), COUNT(*) FROM message WHERE direction=?"


def check_totals(state: Path, shown: Snapshot) -> None:
    for way in ("up", "down"):
        total = shown.totals[way]
        assert [(total.payload_bytes, total.protocol_bytes, total.messages)] == query(state, SUM, way)
        rows = [row for row in shown.traffic if row.direction == way]
        assert sum(row.payload_bytes for row in rows) == total.payload_bytes
        assert sum(row.messages for row in rows) == total.messages


def test_a_finished_run(state: Path) -> None:
    shown = take_snapshot(state)
    assert (shown.run, shown.state, shown.rounds, shown.rounds_done) == ("run", "finished", 4, 4)
    assert [r.round for r in shown.history] == [1, 2, 3, 4]
    assert [s.site for s in shown.sites] == ["north", "south", "west"]
    assert {s.merged_round for s in shown.sites} == {s.version for s in shown.sites} == {4}
    assert not shown.awaited
    check_totals(state, shown)
    assert sum(s.uplink_bytes for s in shown.sites) == shown.totals["up"].payload_bytes
    assert sum(s.downlink_bytes for s in shown.sites) == shown.totals["down"].payload_bytes, "by node, before names"
    expected = pool_quality([{"eval_correct": 1.0, "eval_examples": 2.0, "eval_loss_sum": 3.0}] * 3)
    assert expected is not None
    assert (shown.accuracy, shown.loss) == (expected.accuracy, expected.loss)


def test_baselines_are_of_the_messages_that_hold_tensors(finished_run: Path) -> None:
    shown = take_snapshot(finished_run)
    up, down = 3 * 4, 3 * 5  # the last evaluation sends a state down, and numbers only up
    for dtype, size in (("bf16", 2), ("fp32", 4), ("int8", 1)):
        row = shown.baselines[dtype]
        assert (row.uplink_bytes, row.downlink_bytes) == (up * size * shown.parameters, down * size * shown.parameters)
        sent = shown.totals["up"].payload_bytes + shown.totals["down"].payload_bytes
        assert row.ratio == pytest.approx((row.uplink_bytes + row.downlink_bytes) / sent)


def test_looks_while_a_coordinator_works(tmp_path: Path) -> None:
    """Every look from within the rounds agrees with the ledger, and takes part in the state that it names."""
    world, seen = World(tmp_path), list[Snapshot]()
    state = tmp_path / "coordinator"

    class Watched(SlowTransport):
        def receive(self, timeout: float) -> object:  # type: ignore[override]
            shown = take_snapshot(state)
            check_totals(state, shown)
            seen.append(shown)
            return super().receive(timeout)

    transport = Watched(world.sites, lambda site, round_: {"north": 1.0, "south": 2.0, "west": 3.0}[site])
    with hold(state / COORDINATOR_LOCK, "held"):
        coordinator = Coordinator(world.config(), transport, EventLog(state, "run"), transport.clock)
        coordinator.run()
        coordinator.ledger.close()
    in_first = [s for s in seen if s.round == 1]
    assert {s.state for s in seen} == {"asked", "evaluating"}
    assert next(len(s.awaited) for s in in_first) == 3
    assert {s.answered for s in in_first} == {0, 1, 2}
    last = in_first[-1]
    assert last.since is not None
    assert last.until is not None
    assert last.since < last.until
    assert [s.rounds_done for s in seen] == sorted(s.rounds_done for s in seen)
    late_site = next(s for s in seen if s.round == 3 and len(s.awaited) == 1)
    assert [s.site for s in late_site.sites if s.awaited_since is not None] == ["west"]
    assert take_snapshot(state).state == "finished"


def test_late_and_refused_updates(tmp_path: Path) -> None:
    world = World(tmp_path)
    slow = SlowTransport(world.sites, lambda site, round_: 15.0 if (site, round_) == ("south", 1) else 6.0)
    world.over(slow, late="merge", round_timeout=10.0, rounds=3)
    shown = take_snapshot(tmp_path / "coordinator")
    assert [r.late for r in shown.history] == [e["late"] for e in world.events if e["event"] == "round"] == [0, 1, 0]

    other = World(tmp_path / "other")

    def silent(event: str, node: int, round_: int) -> bool:
        return not (event == "send" and round_ == 2 and node == min(other.sites))

    other.run(silent)
    shown = take_snapshot(tmp_path / "other" / "coordinator")
    assert [r.refused for r in shown.history] == [0, 1, 0, 0]
    assert shown.refused_by_code == {"deadline": 1}
    assert [(r.code, r.round, r.site) for r in shown.refusals] == [("deadline", 2, "north")]
    assert [s.refused for s in shown.sites] == [1, 0, 0]


def test_states_by_who_works(state: Path) -> None:
    lines = (state / EVENTS).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if '"event": "start"' in line)
    (state / EVENTS).write_text("".join(f"{line}\n" for line in lines[: start + 1]))
    assert take_snapshot(state).state == "interrupted"
    with hold(state / COORDINATOR_LOCK, "held"):
        assert take_snapshot(state).state == "waiting"
        with (state / EVENTS).open("a") as stream:
            stream.write('{"event": "asked", "round": 5}\n{"event": "torn')
        assert take_snapshot(state).state == "evaluating"
    with (state / EVENTS).open("a") as stream:
        stream.write('\n{"event": "failed", "message": "no-quorum"}\n')
    assert (take_snapshot(state).state, take_snapshot(state).error) == ("failed", "no-quorum")


def test_the_document_is_json(state: Path) -> None:
    poison(state)
    query(state, "UPDATE metric SET value=9e999 WHERE name='eval_loss_sum'")
    document = json.loads(json.dumps(take_snapshot(state).to_dict(), allow_nan=False))
    assert document["loss"] is None
    assert {s["site"] for s in document["sites"]} >= set(HOSTILE)
    assert set(document) == {name for name in Snapshot.__dataclass_fields__}
    documented = (ROOT / "docs" / "watching.md").read_text()
    assert [name for name in document if f"`{name}`" not in documented] == []


def test_names_that_were_never_admitted_share_one(state: Path) -> None:
    with sqlite3.connect(state / "ledger.db") as database:
        for i in range(100):
            database.execute(
                "INSERT INTO message (run, round, node, site, direction, kind, payload, digest, at)"
                " VALUES ('run', 1, ?, ?, 'up', 'update', 1, '', 0)",
                (str(i), f"made-up-{i}"),
            )
            database.execute(
                "INSERT INTO refusal (run, round, node, site, code, message, at) VALUES ('run', 1, ?, ?, ?, '', 0)",
                (str(i), f"made-up-{i}", f"code-{i}"),
            )
    shown = take_snapshot(state)
    assert {row.site for row in shown.traffic} == {"", "north", "south", "west"}
    check_totals(state, shown)
    assert len(shown.refused_by_code) == CODES + 1
    assert shown.refused_by_code[OTHER] == 100 - CODES
    assert sum(shown.refused_by_code.values()) == shown.refused == 100
    assert len(shown.refusals) == 50


def test_two_runs_in_one_directory(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run(rounds=1, run="first")
    world.run(rounds=2, run="second")
    state = tmp_path / "coordinator"
    assert take_snapshot(state).run == "second"
    assert [take_snapshot(state, name).rounds_done for name in ("first", "second")] == [1, 2]
    assert take_snapshot(state).runs == ("first", "second")
    with pytest.raises(ConfigError, match="--run"):
        take_snapshot(state, "third")


def test_before_the_first_round(state: Path) -> None:
    for path in state.glob("ledger.db*"):
        path.unlink()
    (state / EVENTS).unlink()
    shown = take_snapshot(state)
    assert (shown.rounds_done, shown.sites, shown.history, shown.baselines) == (0, (), (), {})


def test_a_ledger_of_an_older_version(state: Path) -> None:
    with sqlite3.connect(state / "ledger.db") as database:
        database.executescript(
            "ALTER TABLE message DROP COLUMN protocol; ALTER TABLE site DROP COLUMN rate; DROP TABLE task;"
        )
    before = (state / "ledger.db").read_bytes()
    shown = take_snapshot(state)
    assert shown.rounds_done == 4
    assert shown.totals["down"].protocol_bytes == 0
    assert (state / "ledger.db").read_bytes() == before, "it was changed"


def test_a_folder_that_may_not_be_written(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so that SQLite's answer to others is a stand-in here."""
    real = sqlite3.connect

    class Refused:
        def execute(self, *args: object) -> object:
            raise sqlite3.OperationalError("attempt to write a readonly database")

        def close(self) -> None:
            return None

    def connect(name: str, **options: object) -> object:
        return Refused() if name.endswith("mode=ro") else real(name, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("sqlite3.connect", connect)
    assert take_snapshot(state).rounds_done == 4
    (state / "ledger.db-wal").write_bytes(b"what a writer has committed")
    with pytest.raises(StateError, match="cannot be read"):
        take_snapshot(state)


def test_what_is_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"DIR|--run"):
        take_snapshot(tmp_path)
    (tmp_path / "ledger.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(StateError, match="cannot be read"):
        take_snapshot(tmp_path)


def test_a_look_changes_nothing_and_waits_for_nobody(state: Path) -> None:
    """While a writer holds the ledger's lock in the middle of a transaction, a look sees the last commit."""
    code = (
        "import sqlite3, sys\n"
        f"db = sqlite3.connect({str(state / 'ledger.db')!r}, isolation_level=None)\n"
        "db.execute('BEGIN EXCLUSIVE'); db.execute('DELETE FROM round')\n"
        "print('held', flush=True); sys.stdin.read(1)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"held\n"
        assert take_snapshot(state).rounds_done == 4
        writer.communicate(b"x")
    assert take_snapshot(state).rounds_done == 4


def test_one_look_is_of_one_commit(state: Path) -> None:
    with WatchReader(state) as reader, reader.one_look():
        assert reader.rounds_done("run") == 4
        query(state, "DELETE FROM round")
        assert len(reader.rounds("run")) == 4


def test_memory_transport_is_counted_as_it_carried(tmp_path: Path) -> None:
    world = World(tmp_path)
    transport: MemoryTransport = world.run()
    shown = take_snapshot(tmp_path / "coordinator")
    assert {way: total.payload_bytes for way, total in shown.totals.items()} == transport.carried
