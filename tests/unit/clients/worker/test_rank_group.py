"""The hub alone: which command a rank gets, and who is forgotten when."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from clients.worker.rank_group import Command, RankGroup, RankReport
from fedcompress.errors import TrainingError
from fedcompress.proto.v1 import worker_pb2


class Stream:
    """A rank's stream as gRPC would hold it: pulled when the rank is ready, broken when told to."""

    def __init__(self, hub: RankGroup, rank: int, pid: int = 0) -> None:
        self._active = True
        self._ended: list[Callable[[], None]] = []
        self._registered = threading.Event()
        self._commands = hub.Attend(worker_pb2.RankHello(rank=rank, pid=pid), self)
        self._thread = ThreadPoolExecutor(1)
        self._pull: Future[Command] | None = self._thread.submit(next, self._commands)
        assert self._registered.wait(timeout=20)

    def add_callback(self, callback: Callable[[], None]) -> None:
        self._ended.append(callback)
        self._registered.set()

    def is_active(self) -> bool:
        return self._active

    def take(self) -> Command:
        """The next command."""
        pull = self._pull or self._thread.submit(next, self._commands)
        self._pull = None
        return pull.result(timeout=20)

    def end(self) -> None:
        self._active = False
        for callback in self._ended:
            callback()
        self._thread.shutdown()


def report(hub: RankGroup, rank: int, job: int, **fields: str) -> None:
    hub.Report(RankReport(rank=rank, id=job, **fields), None)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def test_results_of_all_ranks(pool: ThreadPoolExecutor) -> None:
    hub = RankGroup(2)
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
    """A job was over before the rank looked: what it reports of it must not answer the next one."""
    hub = RankGroup(1)
    stream = Stream(hub, 0)
    for job in ("one", "two"):
        over = pool.submit(lambda job=job: list(hub.run(job, start_timeout=5)))
        while not over.done():
            report(hub, 0, 1 if job == "one" else 2, error="given-up: x")
    after = pool.submit(lambda: list(hub.run("three", start_timeout=5)))
    taken = [stream.take() for _ in range(3)]
    assert [(c.id, c.job_json) for c in taken] == [(1, "one"), (2, "two"), (3, "three")]
    report(hub, 0, 2, result_json='"stale"')
    report(hub, 0, 3, result_json='"fresh"')
    assert [r.result_json for r in after.result(timeout=20)] == ['"fresh"']
    stream.end()


def test_killed_ranks_get_no_further_job(pool: ThreadPoolExecutor) -> None:
    """Their streams have not broken yet; the next job waits for the new group instead."""
    hub = RankGroup(2, settle_timeout=0.0)
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
