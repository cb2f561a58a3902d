"""A rank group is the set of training ranks that attend a worker: jobs go out to them, reports come in.

A rank is a client of the worker's gRPC socket. It calls ``Attend`` once and reads jobs from the stream that this
returns, for as long as both processes live; it sends progress and results by ``Report``. So a rank waits for commands
on a gRPC stream, not in a torch collective: it can idle for days without a timeout, and each side sees the stream
break when the other dies.

Ranks are started and replaced together, as a *group* with a number (``clients.worker.main.keep_ranks``). Whoever still
belongs to an older group is turned away. Within a group the ranks find each other through a torch ``TCPStore``: rank 0
opens it, and ``Meet`` tells its address to the others.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from fedcompress.errors import TrainingError
from fedcompress.proto.v1 import worker_pb2, worker_pb2_grpc

POLL = 1.0  # seconds between looks at whether a rank's call is still open
RankReport = worker_pb2.RankReport
Command = worker_pb2.RankCommand


class RankGroup(worker_pb2_grpc.RanksServicer):
    """Hands one job at a time to all ranks, and collects what they report."""

    def __init__(self, ranks: int, settle_timeout: float = 15.0, *, local: int | None = None) -> None:
        """Start without a group: no rank attends yet.

        Args:
            ranks: how many ranks are to attend, on all nodes.
            settle_timeout: seconds that the other ranks have to report after one has failed.
            local: how many of them, the first, run on this machine; all if None.
        """
        self.ranks = ranks
        self._local = ranks if local is None else local
        self.settle_timeout = settle_timeout  # seconds
        self._changed = threading.Condition()  # guards all that follows; notified at each change
        self._attending: dict[int, tuple[int, queue.Queue[Command]]] = {}  # rank -> its process id, its commands
        self._job = 0  # number of the job that runs, or of the last one
        self._reports: queue.Queue[RankReport] | None = None  # of the job that runs; None between jobs
        self._group = 0  # number of the group that may attend
        self._store: tuple[str, int] | None = None  # host and port of the group's TCPStore, once rank 0 has told them
        self.is_resting = threading.Event()  # set: the ranks of this machine have ended until a job comes
        self.absent = ""  # which nodes have not joined, for messages; set by NodeRegistry, empty if none is missing

    def begin(self) -> int:
        """Return the number of a new group of ranks; those of the group before are forgotten."""
        with self._changed:
            for rank in self._attending:
                self._report_death(rank)
            self._attending.clear()
            self._group += 1
            self._store = None
            self._changed.notify_all()
            return self._group

    @property
    def ready(self) -> int:
        """Return how many ranks attend, that is, wait for commands or run one."""
        return len(self._attending)

    @property
    def pids(self) -> list[int]:
        """Return the process ids of the attending ranks of this machine, by rank."""
        with self._changed:
            return [pid for rank, (pid, _) in sorted(self._attending.items()) if rank < self._local]

    def Attend(self, request: worker_pb2.RankHello, context: Any) -> Iterator[Command]:
        """Yield commands to one rank for as long as both live; none at all to a rank of another group."""
        commands: queue.Queue[Command] = queue.Queue()
        with self._changed:
            if request.group != self._group or request.rank >= self.ranks:
                return
            self._attending[request.rank] = (request.pid, commands)
            self._changed.notify_all()
        context.add_callback(lambda: self._leave(request.rank, commands))
        while context.is_active():
            try:
                yield commands.get(timeout=POLL)
            except queue.Empty:
                continue

    def _leave(self, rank: int, commands: queue.Queue[Command]) -> None:
        """Note that a rank's stream has ended, unless another process attends for that rank by now."""
        with self._changed:
            if self._attending.get(rank, (0, None))[1] is not commands:
                return
            del self._attending[rank]
            self._report_death(rank)
            self._changed.notify_all()

    def _report_death(self, rank: int) -> None:
        """Report to the job that runs, if there is one, that a rank has ended."""
        if self._reports is not None:
            self._reports.put(RankReport(rank=rank, id=self._job, error="rank-died: the rank's process ended"))

    def Meet(self, request: worker_pb2.MeetRequest, context: Any) -> worker_pb2.MeetReply:
        """Return where the TCPStore of a group listens; rank 0 tells it, the others wait until it has."""
        import grpc

        with self._changed:
            if request.port and request.group == self._group:
                self._store = (request.host, request.port)
                self._changed.notify_all()
            while self._store is None and request.group == self._group and context.is_active():
                self._changed.wait(timeout=POLL)
            store = self._store if request.group == self._group else None
        if store is None:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"group {request.group}: is over")
            raise AssertionError  # abort raises
        return worker_pb2.MeetReply(host=store[0], port=store[1])

    def Report(self, request: RankReport, context: Any) -> worker_pb2.RankAck:
        """Receive progress, the result or the error of one rank; what belongs to an older job is dropped."""
        with self._changed:
            if self._reports is not None and request.id == self._job:
                self._reports.put(request)
        return worker_pb2.RankAck()

    def rest(self) -> None:
        """Let the ranks end, and give back the memory of their model, until there is a job again.

        Ranks of several machines stay: they would have to meet anew.
        """
        if self._local == self.ranks:
            self.is_resting.set()

    def run(self, job_json: str, *, start_timeout: float) -> Iterator[RankReport]:
        """Run one job on all ranks; yield rank 0's progress, and every rank's result.

        Args:
            job_json: a ``clients.training.job.Job`` as JSON.
            start_timeout: seconds to wait until all ranks attend.

        Yields:
            Reports, in the order in which they come.

        Raises:
            TrainingError: ``ranks-not-ready``, ``rank-died``, or the code that a rank reported.
        """
        self.is_resting.clear()
        with self._changed:
            if not self._changed.wait_for(lambda: self.ready == self.ranks, start_timeout):
                missing = f": {self.absent}" if self.absent else ""
                message = f"{self.ready} of {self.ranks} ranks after {start_timeout:.0f} s{missing}"
                raise TrainingError("ranks-not-ready", message)
            self._job += 1
            reports: queue.Queue[RankReport] = queue.Queue()
            self._reports = reports
            for _, commands in self._attending.values():
                commands.put(Command(id=self._job, job_json=job_json))
        waiting = set(range(self.ranks))
        try:
            while waiting:
                report = reports.get()
                if report.error or report.result_json:
                    waiting.discard(report.rank)
                if report.error:
                    self._settle(reports, waiting)
                    code, _, message = report.error.partition(": ")
                    raise TrainingError(code, f"rank {report.rank}: {message}")
                if report.result_json or report.rank == 0:
                    yield report
        finally:
            with self._changed:
                self._reports = None

    def _settle(self, reports: queue.Queue[RankReport], waiting: set[int]) -> None:
        """Wait for the other ranks after one's error; those that hang in a collective instead of reporting are killed.

        The worker starts a group afresh when a rank of it dies. Killed ranks are forgotten at
        once: the next job must wait for the new group.
        """
        deadline = time.monotonic() + self.settle_timeout
        while waiting and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                report = reports.get(timeout=left)
                if report.error or report.result_json:
                    waiting.discard(report.rank)
        if not waiting:
            return
        with self._changed:
            pids = [pid for rank, (pid, _) in self._attending.items() if rank < self._local]
            self._attending.clear()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
