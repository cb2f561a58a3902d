"""The ranks that attend a worker: commands out, reports in.

A rank waits for commands on a gRPC stream, not in a collective, so it can idle for days
without a timeout, and it sees the stream break when the worker dies.
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

RankReport = worker_pb2.RankReport
Command = worker_pb2.RankCommand


class RankGroup(worker_pb2_grpc.RanksServicer):
    """Hands one job at a time to all ranks, and collects what they report."""

    def __init__(self, ranks: int, settle_timeout: float = 15.0, *, local: int | None = None) -> None:
        """Nobody attends yet.

        Args:
            ranks: how many are to attend, on all nodes.
            settle_timeout: seconds that ranks have to report after one has failed.
            local: how many of them, the first, run on this machine; all if None.
        """
        self.ranks = ranks
        self._local = ranks if local is None else local
        self.settle_timeout = settle_timeout  # seconds
        self._changed = threading.Condition()
        self._attending: dict[int, tuple[int, queue.Queue[Command]]] = {}  # rank -> pid, commands
        self._job = 0
        self._reports: queue.Queue[RankReport] | None = None
        self._group = 0
        self._store: tuple[str, int] | None = None  # host and port of the group's
        self.absent = ""  # who is missing, where somebody knows

    def begin(self) -> int:
        """Number of a new group of ranks; those of the group before are forgotten."""
        with self._changed:
            for rank in self._attending:
                self._say_died(rank)
            self._attending.clear()
            self._group += 1
            self._store = None
            self._changed.notify_all()
            return self._group

    @property
    def ready(self) -> int:
        """Ranks that wait for commands."""
        return len(self._attending)

    @property
    def pids(self) -> list[int]:
        """Process ids of the attending ranks of this machine, by rank."""
        with self._changed:
            return [pid for rank, (pid, _) in sorted(self._attending.items()) if rank < self._local]

    def Attend(self, request: worker_pb2.RankHello, context: Any) -> Iterator[Command]:
        """Stream of commands to one rank, for as long as both live."""
        commands: queue.Queue[Command] = queue.Queue()
        with self._changed:
            if request.group != self._group or request.rank >= self.ranks:
                return
            self._attending[request.rank] = (request.pid, commands)
            self._changed.notify_all()
        context.add_callback(lambda: self._leave(request.rank, commands))
        while context.is_active():
            try:
                yield commands.get(timeout=1.0)
            except queue.Empty:
                continue

    def _leave(self, rank: int, commands: queue.Queue[Command]) -> None:
        with self._changed:
            if self._attending.get(rank, (0, None))[1] is not commands:
                return
            del self._attending[rank]
            self._say_died(rank)
            self._changed.notify_all()

    def _say_died(self, rank: int) -> None:
        if self._reports is not None:
            self._reports.put(RankReport(rank=rank, id=self._job, error="rank-died: the rank's process ended"))

    def Meet(self, request: worker_pb2.MeetRequest, context: Any) -> worker_pb2.MeetReply:
        """Where the store of a group is; waits until its rank 0 has said so."""
        import grpc

        with self._changed:
            if request.port and request.group == self._group:
                self._store = (request.host, request.port)
                self._changed.notify_all()
            while self._store is None and request.group == self._group and context.is_active():
                self._changed.wait(timeout=1.0)
            store = self._store if request.group == self._group else None
        if store is None:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"group {request.group}: is over")
            raise AssertionError  # abort raises
        return worker_pb2.MeetReply(host=store[0], port=store[1])

    def Report(self, request: RankReport, context: Any) -> worker_pb2.RankAck:
        """Progress, result or error of one rank."""
        with self._changed:
            if self._reports is not None and request.id == self._job:
                self._reports.put(request)
        return worker_pb2.RankAck()

    def run(self, job_json: str, *, start_timeout: float) -> Iterator[RankReport]:
        """Run one job on all ranks; yields rank 0's progress, then every rank's result.

        Raises:
            TrainingError: ``ranks-not-ready``, ``rank-died`` or what a rank reported.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.ready == self.ranks, start_timeout):
                missing = f": {self.absent}" if self.absent else ""
                message = f"{self.ready} of {self.ranks} ranks after {start_timeout:.0f} s{missing}"
                raise TrainingError("ranks-not-ready", message)
            self._job += 1
            reports = self._reports = queue.Queue()
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
        """After one rank's error: the others report too, or hang in a collective and are killed.

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
