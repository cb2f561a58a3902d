"""The hub alone: which command a rank gets, and who is forgotten when."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from clients.worker.hub import Command, RankHub, Report
from fedcompress.errors import TrainingError
from fedcompress.proto.v1 import worker_pb2


class Stream:
    """A rank's stream as gRPC would hold it; breaks when told to."""

    def __init__(self, hub: RankHub, rank: int, pid: int = 0) -> None:
        self.active = True
        self._ended: list[Callable[[], None]] = []
        self._commands = hub.Attend(worker_pb2.RankHello(rank=rank, pid=pid), self)
        self._thread = ThreadPoolExecutor(1)
        self._next = self._thread.submit(next, self._commands)
        while not self._ended:  # the generator has registered itself
            pass

    def add_callback(self, callback: Callable[[], None]) -> None:
        self._ended.append(callback)

    def is_active(self) -> bool:
        return self.active

    def take(self) -> Command:
        """The next command."""
        command = self._next.result(timeout=20)
        self._next = self._thread.submit(next, self._commands)
        return command

    def end(self) -> None:
        self.active = False
        for callback in self._ended:
            callback()
        self._thread.shutdown(wait=False)


def report(hub: RankHub, rank: int, job: int, **fields: str) -> None:
    hub.Report(Report(rank=rank, id=job, **fields), None)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def test_results_of_all_ranks(pool: ThreadPoolExecutor) -> None:
    hub = RankHub(2)
    ranks = [Stream(hub, number) for number in range(2)]
    done = pool.submit(lambda: list(hub.run("job", start_timeout=5)))
    ids = {stream.take().id for stream in ranks}
    (job,) = ids
    report(hub, 0, job - 1, error="old: from a job before")
    report(hub, 1, job, result_json="{}")
    report(hub, 0, job, result_json="{}")
    assert {r.rank for r in done.result(timeout=20)} == {0, 1}
    for stream in ranks:
        stream.end()
    assert hub.ready == 0


def test_a_command_keeps_the_number_of_its_job(pool: ThreadPoolExecutor) -> None:
    """A job was given up before the rank looked: its late report must not answer the next one."""
    hub = RankHub(1)
    first = hub.run("one", start_timeout=5)
    stream = Stream(hub, 0)
    stream.active = False  # the rank does not look yet
    stream._next.cancel()
    given_up = pool.submit(next, first)
    del given_up
    second_command = Command(id=1, job_json="one")
    taken = stream.take()
    assert (taken.id, taken.job_json) == (second_command.id, second_command.job_json)
    stream.end()


def test_killed_ranks_get_no_further_job(pool: ThreadPoolExecutor) -> None:
    """Their streams have not broken yet; the next job waits for the new group instead."""
    hub = RankHub(2, settle_timeout=0.0)
    victims = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) for _ in range(2)]
    ranks = [Stream(hub, number, victims[number].pid) for number in range(2)]
    failed = pool.submit(lambda: list(hub.run("one", start_timeout=5)))
    report(hub, 0, ranks[0].take().id, error="broken: x")
    with pytest.raises(TrainingError, match="rank 0: x"):
        failed.result(timeout=20)
    assert [v.wait(timeout=20) for v in victims] == [-9, -9]
    with pytest.raises(TrainingError, match="0 of 2 ranks") as caught:
        next(hub.run("two", start_timeout=0.0))
    assert caught.value.code == "ranks-not-ready"
    fresh = [Stream(hub, number) for number in range(2)]
    for stream in ranks:
        stream.end()
    assert hub.ready == 2, "the old streams end late: the new ranks stay"
    done = pool.submit(lambda: list(hub.run("three", start_timeout=5)))
    for number, stream in enumerate(fresh):
        command = stream.take()
        assert command.job_json == "three"
        report(hub, number, command.id, result_json="{}")
    assert len(done.result(timeout=20)) == 2
    for stream in fresh:
        stream.end()
