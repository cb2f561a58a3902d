"""kill -9 at random places of coordinator and sites, again and again: the same bytes as a run that nobody killed."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from fedcompress.storage.failpoints import FAILPOINTS
from tests.faults.chaos import Chaos
from tests.faults.record import record


def compare(folder: Path, rounds: int, kills: int, seed: int) -> Chaos:
    """Run it calm, run it with kills, and compare adapter and ledger."""
    calm = Chaos(folder / "calm", rounds, 0).run()
    chaos = Chaos(folder / "chaos", rounds, kills, seed)
    assert chaos.run() == calm
    digests = []
    for name in ("calm", "chaos"):
        with sqlite3.connect(folder / name / "coordinator" / "ledger.db") as db:
            digests.append(db.execute("SELECT version, digest FROM version ORDER BY version").fetchall())
            merged = db.execute("SELECT round, COUNT(*), COUNT(DISTINCT site) FROM merged GROUP BY round").fetchall()
            assert merged == [(n, 3, 3) for n in range(1, rounds + 1)], "an update was lost, or counted twice"
            twice = db.execute("SELECT digest FROM merged GROUP BY digest HAVING COUNT(*) > 1").fetchall()
            assert not twice
    assert digests[0] == digests[1]
    return chaos


@pytest.mark.timeout(120)
def test_a_few_kills(tmp_path: Path) -> None:
    chaos = compare(tmp_path, rounds=5, kills=3, seed=1)
    assert chaos.done.total() >= 3


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(4))
def test_many_kills(tmp_path: Path, seed: int) -> None:
    chaos = compare(tmp_path, rounds=60, kills=30, seed=seed)
    assert chaos.killed("server.") >= 20
    assert chaos.killed("site.") >= 30
    for place, count in chaos.done.items():
        record("kill", place, count, "same adapter as a run that nobody killed")


def test_every_place_is_reached_by_the_name_it_has() -> None:
    """A failpoint that no code reaches would never kill."""
    root = Path(__file__).resolve().parents[2]
    text = "".join(
        p.read_text() for folder in ("fedcompress", "server", "clients") for p in (root / folder).rglob("*.py")
    )
    for name in FAILPOINTS:
        assert f'reach("{name}")' in text or f'"{name}")' in text, name
