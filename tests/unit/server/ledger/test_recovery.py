"""Copies of the ledger: whole rows in bounded memory, also of a ledger that is older than its columns."""

from __future__ import annotations

import sqlite3
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest

from fedcompress.errors import AccessError, NoSpaceError
from fedcompress.storage.database import open_database
from server.ledger.recovery import LAST, LEDGER, NEEDED, WHOLE, copy_ledger, recover_file
from server.ledger.schema import SCHEMA, upgrade
from tests.support import no_descriptors
from tests.unit.server.memory import World

MIB = 1 << 20
# As it was before the columns that are added to an older ledger: they come last, and in another order.
OLDER = """
CREATE TABLE version (
  run TEXT NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL, envelope TEXT NOT NULL, size INTEGER NOT NULL,
  outer_state TEXT, residual TEXT, state TEXT, PRIMARY KEY (run, version));
CREATE TABLE site (
  run TEXT NOT NULL, site TEXT NOT NULL, node TEXT NOT NULL, merged TEXT NOT NULL DEFAULT '', acked INTEGER,
  PRIMARY KEY (run, site));
"""


def rows(path: Path, table: str, columns: str = "*") -> list[tuple[object, ...]]:
    with sqlite3.connect(path) as database:
        return sorted(database.execute(f"SELECT {columns} FROM {table}").fetchall())


def filled(folder: Path, count: int) -> sqlite3.Connection:
    database = open_database(folder / LEDGER, SCHEMA)
    merged = (("run", i // 100, f"site-{i % 100}", "d" * 64, 0, 1.0) for i in range(count))
    database.execute("BEGIN")
    database.executemany("INSERT INTO merged VALUES (?, ?, ?, ?, ?, ?)", merged)
    database.execute("COMMIT")
    return database


def test_the_copy_holds_what_a_run_needs(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run()
    folder = tmp_path / "coordinator"
    database = open_database(folder / LEDGER, SCHEMA)  # the last evaluation came after the last copy
    copy_ledger(database, folder, 4)
    database.close()
    for table in NEEDED:
        assert rows(folder / LAST, table) == rows(folder / LEDGER, table) != [], table
    assert rows(folder / LAST, "message") == []


def test_memory_does_not_grow_with_rounds_and_sites(tmp_path: Path) -> None:
    count = 40_000
    database = filled(tmp_path, count)
    tracemalloc.start()
    copy_ledger(database, tmp_path, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    database.close()
    assert len(rows(tmp_path / LAST, "merged", "round")) == count
    assert peak < MIB, "rows are in memory"


def test_a_ledger_that_is_older_than_its_columns(tmp_path: Path) -> None:
    """Its columns are in another order than those of the copy, and every value has its place."""
    database = open_database(tmp_path / LEDGER, OLDER + SCHEMA)
    upgrade(database)
    version = {"run": "r", "version": 1, "digest": "d", "envelope": "e", "size": 3, "state": "s", "residual": "x"}
    site = {"run": "r", "site": "north", "node": "7", "acked": 1, "merged": "m", "examples": 9, "rate": 2.5}
    for table, row in {"version": {**version, "outer_state": "o"}, "site": site}.items():
        names = ", ".join(row)
        database.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(row))})", tuple(row.values()))
    assert rows(tmp_path / LEDGER, "site") != rows(tmp_path / LEDGER, "site", ", ".join(site))
    copy_ledger(database, tmp_path, 1)
    database.close()
    for name in (LAST, WHOLE):
        assert rows(tmp_path / name, "site", ", ".join(site)) == [tuple(site.values())]
        assert rows(tmp_path / name, "version", ", ".join(version)) == [tuple(version.values())]
        assert rows(tmp_path / name, "version", "outer_state") == [("o",)]


@pytest.mark.parametrize("older", [LAST, WHOLE])
def test_copies_of_which_one_is_older_than_the_columns(older: str, tmp_path: Path) -> None:
    world, plain = World(tmp_path / "damaged"), World(tmp_path / "plain")
    plain.run()
    world.run(rounds=2)
    folder = tmp_path / "damaged" / "coordinator"
    with sqlite3.connect(folder / older) as database:
        database.execute("ALTER TABLE site DROP COLUMN rate")
        database.execute("ALTER TABLE version DROP COLUMN outer_state")
    (folder / LEDGER).write_bytes(b"x")
    world.run()
    assert world.result() == plain.result()


def test_a_name_that_a_query_would_read_otherwise(tmp_path: Path) -> None:
    folder = tmp_path / "100% of it? #1 'here'"
    folder.mkdir()
    database = filled(folder, 10)
    database.execute("INSERT INTO run VALUES ('r', '', '', '')")
    copy_ledger(database, folder, 1)
    database.close()
    (folder / LEDGER).write_bytes(b"x")
    assert "is damaged" in recover_file(folder)
    assert len(rows(folder / LEDGER, "merged")) == 10


def test_killed_before_the_first_table(tmp_path: Path) -> None:
    """What is left has a header and nothing to recover: the next start is the first."""
    with closing(sqlite3.connect(tmp_path / LEDGER)) as database:
        database.execute("PRAGMA journal_mode=WAL")
    assert (tmp_path / LEDGER).stat().st_size
    assert recover_file(tmp_path) == ""


def test_tables_are_made_at_once(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError, match="NONSENSE"):
        open_database(tmp_path / LEDGER, "CREATE TABLE IF NOT EXISTS run (a); CREATE NONSENSE;")
    assert rows(tmp_path / LEDGER, "sqlite_master") == []


def test_a_ledger_that_cannot_be_opened_now_is_not_a_damaged_one(tmp_path: Path) -> None:
    """Its copy, which lacks what was sent since, must not take its place."""
    database = filled(tmp_path, 10)
    copy_ledger(database, tmp_path, 1)
    database.execute("INSERT INTO run VALUES ('r', '', '', '')")
    database.close()
    before = (tmp_path / LEDGER).read_bytes()
    with no_descriptors(), pytest.raises(AccessError, match="cannot be opened now"):
        recover_file(tmp_path)
    assert (tmp_path / LEDGER).read_bytes() == before
    assert recover_file(tmp_path) == ""


def test_a_copy_that_has_no_room_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the copy, nothing half-written stays, and the copy before is as good as it was."""
    database = filled(tmp_path, 10)
    copy_ledger(database, tmp_path, 1)
    connect = sqlite3.connect

    def narrow(*args: object, **options: object) -> sqlite3.Connection:
        opened = connect(*args, **options)
        opened.execute("PRAGMA max_page_count=40")
        return opened

    database.executemany(
        "INSERT INTO merged VALUES ('run', ?, 'north', ?, 0, 1.0)", [(1000 + i, "d" * 64) for i in range(5000)]
    )
    monkeypatch.setattr("server.ledger.recovery.OFTEN", 1)  # no whole copy after this round
    monkeypatch.setattr(sqlite3, "connect", narrow)
    with pytest.raises(NoSpaceError, match=LAST):
        copy_ledger(database, tmp_path, 1)
    monkeypatch.undo()
    database.close()
    assert len(rows(tmp_path / LAST, "merged")) == 10
    assert [path.name for path in tmp_path.iterdir() if ".part" in path.name] == []
