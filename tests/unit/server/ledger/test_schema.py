"""What a round asks of the ledger does not take longer for the rounds before it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from server.coordinator import Coordinator
from server.ledger.ledger import Ledger
from server.ledger.reader import LedgerReader
from server.ledger.schema import SCHEMA
from tests.unit.server.ledger.test_link_traffic import CountedTransport
from tests.unit.server.memory import World

GROWING = ("message", "wire", "refusal", "task", "merged", "version")
INDEXES = {
    "message_round", "message_node", "wire_round", "wire_site",
    "refusal_node", "refusal_site", "task_node", "task_site", "task_open",
}  # fmt: skip


def plans(database: sqlite3.Connection, statements: list[str]) -> dict[str, list[str]]:
    """How SQLite goes about each: lines such as ``SEARCH message USING INDEX message_round (run=? AND round=?)``."""
    read = [text for text in dict.fromkeys(statements) if text.startswith(("SELECT", "UPDATE", "DELETE"))]
    return {text: [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {text}")] for text in read}


def test_no_query_of_a_round_reads_all_rows_of_a_table(tmp_path: Path) -> None:
    """Every statement of a run whose sites count, and of which some do not answer; but for what is no garbage."""
    world, said = World(tmp_path), list[str]()
    transport = CountedTransport(world.sites, lambda event, node, round_: (event, node % 2, round_) != ("reply", 1, 2))
    transport.counts = {}
    coordinator = Coordinator(world.config(quorum=1), transport, world.events.append, transport.clock)
    coordinator.ledger._db.set_trace_callback(said.append)
    coordinator.ledger.extend_tasks(1.0)
    coordinator.run()
    found = plans(coordinator.ledger._db, said)
    coordinator.ledger.close()
    assert any(e["event"] == "refused" for e in world.events)
    scans = {step for steps in found.values() for step in steps if step.startswith("SCAN")}
    assert {step for step in scans if any(name in step.split() for name in GROWING)} <= {"SCAN version"}
    assert {name for name in INDEXES if name in str(found.values())} == INDEXES - {"wire_round"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("message WHERE run='r' AND direction='up' AND round=3", "message_round (run=? AND round=? AND direction=?)"),
        ("message WHERE node='1' AND direction='up' AND id>=3 AND id<9", "message_node (node=? AND direction=? AND"),
        ("wire WHERE site='north' ORDER BY id DESC LIMIT 1", "wire_site (site=?)"),
        ("wire WHERE run='r' AND round=3", "wire_round (run=? AND round=?)"),
        ("refusal WHERE run='r' AND node='1' AND round>=3 ORDER BY id DESC LIMIT 3", "refusal_node (run=? AND node=?)"),
        ("task WHERE run='r' AND outcome='open'", "task_open (run=?)"),
    ],
)
def test_each_index_is_for_a_query(text: str, expected: str) -> None:
    with sqlite3.connect(":memory:") as database:
        database.executescript(SCHEMA)
        (steps,) = plans(database, [f"SELECT * FROM {text}"]).values()
    assert len(steps) == 1, "it is sorted besides"
    assert f"USING INDEX {expected}" in steps[0]


def test_an_older_ledger_gets_them(tmp_path: Path) -> None:
    World(tmp_path).run(rounds=1)
    path = tmp_path / "coordinator" / "ledger.db"
    with sqlite3.connect(path) as database:
        for name in INDEXES:
            database.execute(f"DROP INDEX {name}")
    with LedgerReader(path.parent) as history:
        assert len(history.rounds("run")) == 1, "whoever only reads does without"
    Ledger(path.parent, "run").close()
    with sqlite3.connect(path) as database:
        assert {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type='index'")} >= INDEXES
