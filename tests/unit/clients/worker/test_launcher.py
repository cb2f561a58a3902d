"""Ranks are kept up: how often they may die, and that nothing is left of them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from clients.worker import launcher as module
from clients.worker.launcher import KEPT_STARTS, Launcher, forget_old_starts
from clients.worker.main import MAX_RESTARTS, keep_ranks
from clients.worker.rank_group import RankGroup
from fedcompress.errors import TrainingError
from fedcompress.runtime.process_group import wait_until

RANK = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
e = os.environ
group = e["FEDCOMPRESS_GROUP"]
print(e["RANK"], "of", e["WORLD_SIZE"], "in", group, e["LOCAL_RANK"], "of", e["LOCAL_WORLD_SIZE"], e["EXTRA"])
sys.stdout.flush()
sys.exit(3) if e["RANK"] == "3" else signal.pause()
"""


class Dying:
    """Ranks that are dead whenever somebody looks, until ``lives`` starts are over."""

    folder = Path("logs")

    def __init__(self, lives: int, stop: threading.Event) -> None:
        self.starts: list[tuple[int, int]] = []
        self._lives, self._stop = lives, stop

    def start(self, group: int, world: int) -> None:
        self.starts.append((group, world))

    def find_dead_rank(self) -> str:
        if len(self.starts) > self._lives:
            self._stop.set()
            return ""
        return "rank 0 ended by signal SIGKILL"

    def stop(self) -> None:
        pass


def test_ranks_that_die_at_once_are_given_up() -> None:
    stop = threading.Event()
    ranks = Dying(100, stop)
    with pytest.raises(TrainingError, match="ranks died 4 times: rank 0 ended by signal SIGKILL: see logs") as caught:
        keep_ranks(ranks, RankGroup(2), stop)  # type: ignore[arg-type]
    assert caught.value.code == "ranks-failed"
    assert ranks.starts == [(n, 2) for n in range(1, MAX_RESTARTS + 2)]


def test_ranks_that_die_after_a_while_are_started_for_ever() -> None:
    stop = threading.Event()
    ranks = Dying(50, stop)
    keep_ranks(ranks, RankGroup(1), stop, patience=0.0)  # type: ignore[arg-type]
    assert len(ranks.starts) == 51


class Living(Dying):
    """Ranks that live; at each look the next of ``events`` happens."""

    def __init__(self, events: list[Callable[[], None]], stop: threading.Event) -> None:
        super().__init__(0, stop)
        self.stops = 0
        self._events = events

    def find_dead_rank(self) -> str:
        if self._events:
            self._events.pop(0)()
        return ""

    def stop(self) -> None:
        self.stops += 1


def test_ranks_rest_until_there_is_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the end of a run no rank lives, and a job starts them afresh: it is no death."""
    monkeypatch.setattr("clients.worker.main.POLL", 0.01)
    stop = threading.Event()
    group = RankGroup(2)
    ranks = Living([lambda: None, group.rest, stop.set], stop)
    keeping = threading.Thread(target=keep_ranks, args=(ranks, group, stop), daemon=True)
    keeping.start()
    wait_until(lambda: ranks.stops == 1, timeout=20, what="rest", alive=lambda: None)
    assert (ranks.starts, ranks.stops) == ([(1, 2)], 1)
    with pytest.raises(TrainingError, match="0 of 2 ranks after 0 s"):
        list(group.run("{}", start_timeout=0.2))  # nobody attends here; but they are started
    keeping.join(20)
    assert not keeping.is_alive()
    assert ranks.starts == [(1, 2), (2, 2)]


def test_ranks_of_several_machines_do_not_rest() -> None:
    group = RankGroup(4, local=2)
    group.rest()
    assert not group.is_resting.is_set()


def test_a_process_that_ends_is_told_and_all_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 ends with 3, rank 0 ignores SIGTERM; what they print is kept by group and rank."""
    program = tmp_path / "ranks"
    program.write_text(f"#!{sys.executable}\n{RANK}")
    program.chmod(0o700)
    monkeypatch.setattr(module.sys, "executable", str(program))
    monkeypatch.setattr(module, "TERM_TIMEOUT", 0.2)
    made = Launcher({"EXTRA": "x"}, tmp_path / "logs", 2, first=2)
    assert made.find_dead_rank() == ""
    made.start(5, 4)
    wait_until(lambda: bool(made.find_dead_rank()), timeout=20, what="end", alive=lambda: None)
    assert made.find_dead_rank() == "rank 3 ended with exit code 3"
    wait_until(lambda: (made.folder / "5" / "2.log").read_text() != "", timeout=20, what="log", alive=lambda: None)
    pids = [p.pid for p in made._running.values()]
    made.stop()
    assert made.find_dead_rank() == ""
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    texts = [(made.folder / "5" / f"{n}.log").read_text() for n in (2, 3)]
    assert texts == ["2 of 4 in 5 0 of 2 x\n", "3 of 4 in 5 1 of 2 x\n"]


def test_only_the_last_starts_are_kept(tmp_path: Path) -> None:
    for number in range(KEPT_STARTS + 3):
        folder = tmp_path / f"ranks-{number}"
        folder.mkdir()
        os.utime(folder, (number, number))
    (tmp_path / "worker.jsonl").touch()
    forget_old_starts(tmp_path)
    kept = {p.name for p in tmp_path.iterdir()}
    assert kept == {"worker.jsonl", *(f"ranks-{n}" for n in range(4, KEPT_STARTS + 3))}
