"""Tables fit the terminal, whatever its width: columns are left out whole, and numbers are never cut."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from fedcompress.fitted_table import FittedTable
from server.commands import history
from server.ledger.reader import LedgerReader
from server.watch import terminal
from server.watch.view import take_snapshot
from tests.unit.server.memory import World

NAMES = ("site", "up", "down", "late")
ROWS = (("north", "123,456,789", "987,654,321", "0"), ("a-hospital-with-a-long-name", "1", "2", "3"))


def drawn(table: object, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None).print(table)
    return out.getvalue()


@pytest.mark.parametrize("width", range(20, 100, 4))
def test_every_width(width: int) -> None:
    table = FittedTable(names=NAMES, rows=ROWS, dropped=("late", "down"), folded=("site",))
    text = drawn(table, width)
    assert all(len(line) <= width for line in text.splitlines())
    kept = table.choose_columns(width)
    assert kept[:2] == ["site", "up"]
    assert "123,456,789" in text or width < 32
    assert ("987,654,321" in text) == ("down" in kept)
    assert ("left out" in text) == (len(kept) < len(NAMES))


def test_what_is_wide_enough_is_whole() -> None:
    assert FittedTable(names=NAMES, rows=ROWS, dropped=NAMES).choose_columns(100) == list(NAMES)
    assert FittedTable(names=NAMES, rows=()).choose_columns(5) == list(NAMES), "nothing may be left out"


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_tables_of_a_run(width: int, tmp_path: Path) -> None:
    """Rounds and sites, with numbers of a large run, as ``history`` and ``watch`` print them."""
    world = World(tmp_path)
    world.run(rounds=2)
    with LedgerReader(tmp_path / "coordinator") as reader:
        for kind in ("rounds", "sites", "site_rounds"):
            options = history.Options(state="", sites=kind == "sites", site_rounds=kind == "site_rounds")
            _, entries = history._read_entries(reader, "run", options)
            heads, rows = history._TABLES[kind](entries)
            table = FittedTable(names=heads, rows=rows, dropped=history.LEAST_IMPORTANT, folded=history.WORDS)
            text = drawn(table, width)
            assert all(len(line) <= width for line in text.splitlines())
            assert "…" not in text
            for row in rows:
                assert row[heads.index("bytes up")] in text
    shown = take_snapshot(tmp_path / "coordinator")
    lines = drawn(terminal._tabulate_sites(shown), width).splitlines()
    assert all(len(line) <= width for line in lines)
    assert not any("…" in line for line in lines)
