"""The worker's gRPC service on a Unix socket.

A round runs in its own thread: when the ClientApp that asked for it dies, the round goes
on, and the same request attaches to it again, or is answered from the outbox.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from clients.runtime.logs import log_round
from clients.runtime.malloc import trim
from clients.site import SiteConfig
from clients.state.counters import Counters
from clients.state.site_state import SiteState
from clients.worker.rank_group import RankGroup
from clients.worker.round_runner import Reply, RoundRunner
from clients.worker.status import build_status
from fedcompress.config.train_task import TrainTask
from fedcompress.errors import (
    AdmissionError,
    FedCompressError,
    IdentityError,
    LimitError,
    MismatchError,
    NoSpaceError,
    TrainingError,
)
from fedcompress.proto.v1 import worker_pb2, worker_pb2_grpc
from fedcompress.storage.disk_space import reserve_space
from fedcompress.storage.failpoints import failpoint

LOG = logging.getLogger("fedcompress.worker")
CHUNK = 1 << 20  # bytes
MAX_PAYLOAD = 1 << 36  # bytes
Event = worker_pb2.TrainEvent


class _Round(threading.Thread):
    """One running round; any number of callers may follow its events."""

    def __init__(
        self, runner: RoundRunner, counters: Counters, task: TrainTask, bundle: bytes, sig: str, place: Path
    ) -> None:
        super().__init__(name=f"round-{task.round}", daemon=True)
        self.task = task
        self._runner = runner
        self._counters = counters
        self._bundle, self._signature, self._place = bundle, sig, place
        self._changed = threading.Condition()
        self._events: list[Event] = []
        self.noted = time.monotonic()  # when the last progress note came
        self.reply: Reply | None = None
        self.failure: worker_pb2.Failure | None = None

    def run(self) -> None:
        with log_round(self.task.run, self.task.round):
            self._run()
        trim()

    def _run(self) -> None:
        self._tell_refusal()
        try:
            with reserve_space(self._place):
                reply = self._runner.run(self.task, self._bundle, self._progress, self._signature)
        except FedCompressError as error:
            LOG.warning("round %d failed: %s", self.task.round, error)
            self._finish(failure=_failure(error))
        except OSError as error:
            LOG.exception("round %d failed", self.task.round)
            message = f"site.state_dir: {error.strerror or error}"
            self._finish(failure=worker_pb2.Failure(code="os-error", message=message))
        except Exception as error:  # the round's thread is the last place that can report it
            LOG.exception("round %d failed", self.task.round)
            self._finish(failure=worker_pb2.Failure(code="internal", message=f"{type(error).__name__}: {error}"))
        else:
            self._finish(reply=reply)

    def _tell_refusal(self) -> None:
        """Why replies were refused, the newest first: for `site status`."""
        if self.task.refused:
            self._counters.failed(self.task.run, max(self.task.round - 1, 0), "refused", self.task.refused[0])

    def _progress(self, **fields: Any) -> None:
        note = worker_pb2.Progress(**fields)
        steps = f" {note.step}/{note.steps} loss {note.loss:.4f}" if note.steps else ""
        LOG.info("%s", f"round {self.task.round}: {note.phase}{steps} {note.text}".rstrip())
        with self._changed:
            self._events.append(Event(progress=note))
            self.noted = time.monotonic()
            self._changed.notify_all()

    def _finish(self, reply: Reply | None = None, failure: worker_pb2.Failure | None = None) -> None:
        if failure is not None:
            self._counters.failed(self.task.run, self.task.round, failure.code, failure.message)
        with self._changed:
            self.reply, self.failure = reply, failure
            self._changed.notify_all()

    @property
    def finished(self) -> bool:
        """Whether there is a reply or a failure."""
        with self._changed:
            return self.reply is not None or self.failure is not None

    @property
    def note(self) -> worker_pb2.Progress:
        """The last progress note."""
        return self._events[-1].progress if self._events else worker_pb2.Progress(phase="receive")

    def follow(self, active: Callable[[], bool]) -> Iterator[Event]:
        """All progress so far and to come, then the reply in chunks, or the failure.

        Ends when the caller is no longer ``active``: it would hold one of the server's threads.
        """
        seen = 0
        while True:
            with self._changed:
                while len(self._events) == seen and self.reply is None and self.failure is None:
                    if not active():
                        return
                    self._changed.wait(timeout=1.0)
                fresh, seen = self._events[seen:], len(self._events)
                reply, failure = self.reply, self.failure
            yield from fresh
            if failure is not None:
                yield Event(failure=failure)
                return
            if reply is not None:
                size = len(reply.payload)
                yield Event(reply=worker_pb2.ReplyHeader(payload_size=size, replayed=reply.replayed))
                for at in range(0, size, CHUNK):
                    failpoint("site.reply")
                    yield Event(chunk=reply.payload[at : at + CHUNK])
                return


def _failure(error: FedCompressError) -> worker_pb2.Failure:
    if isinstance(error, NoSpaceError):
        return worker_pb2.Failure(code="disk-full", message=str(error))
    coded = isinstance(error, MismatchError | TrainingError | AdmissionError | IdentityError)
    code = error.code if coded else type(error).__name__  # type: ignore[attr-defined]
    return worker_pb2.Failure(code=code, message=str(error))


class WorkerService(worker_pb2_grpc.WorkerServicer):
    """Train, Status and Stop."""

    def __init__(self, site: SiteConfig, session: SiteState, hub: RankGroup, counters: Counters) -> None:
        self._site = site
        self._counters = counters
        self._started = time.monotonic()
        self._hub = hub
        self._runner = RoundRunner(site, session, hub)
        self._lock = threading.Lock()
        self._current: _Round | None = None

    def Train(self, request_iterator: Iterator[worker_pb2.TrainRequest], context: Any) -> Iterator[Event]:
        """Run the round, or attach to it if it is running already."""
        try:
            task, bundle, signature = _read_request(request_iterator)
        except FedCompressError as error:
            yield Event(failure=_failure(error))
            return
        self._counters.received(task.run, len(bundle))
        with self._lock:
            current = self._current
            if current is None or current.finished:
                place = self._site.state_dir
                current = self._current = _Round(self._runner, self._counters, task, bundle, signature, place)
                current.start()
        if _same_for_all(current.task) != _same_for_all(task):  # a moved node is told more digests
            message = f"round {current.task.round} of run {current.task.run} is still running"
            yield Event(failure=worker_pb2.Failure(code="busy", message=message))
            return
        yield from current.follow(context.is_active)
        if current.reply is not None and context.is_active():
            self._counters.sent(task.run, len(current.reply.payload))

    def Status(self, request: worker_pb2.StatusRequest, context: Any) -> worker_pb2.StatusReply:
        """What the worker is doing."""
        current = self._current
        busy = current is not None and not current.finished
        reply = build_status(self._site.name, self._hub, self._counters)
        reply.uptime_seconds = time.monotonic() - self._started
        reply.model_loads = self._runner.model_loads
        if current is None:
            return reply
        note, reply.run, reply.round, reply.rounds = (
            current.note,
            current.task.run,
            current.task.round,
            current.task.rounds,
        )
        reply.phase = note.phase if busy else "idle"
        reply.step, reply.steps, reply.loss, reply.text = note.step, note.steps, note.loss, note.text
        reply.phase_seconds = time.monotonic() - current.noted
        return reply

    def Stop(self, request: worker_pb2.StopRequest, context: Any) -> worker_pb2.StopReply:
        """End the worker and its ranks."""
        context.add_callback(lambda: os.kill(os.getpid(), signal.SIGTERM))
        return worker_pb2.StopReply()


def _same_for_all(task: TrainTask) -> TrainTask:
    return replace(task, merged=(), site="", refused=())


def _read_request(requests: Iterator[worker_pb2.TrainRequest]) -> tuple[TrainTask, bytes, str]:
    head = next(requests, None)
    if head is None or not head.HasField("task"):
        raise TrainingError("bad-request", "request: its first item must be the task")
    size = head.task.payload_size
    if size > MAX_PAYLOAD:
        raise LimitError(f"request.payload_size: {size}: at most {MAX_PAYLOAD}")
    task = TrainTask.from_json(head.task.task_json)
    parts, total = [], 0
    for item in requests:
        total += len(item.chunk)
        if total > size:
            raise LimitError(f"request: more than the {size} bytes that were promised")
        parts.append(item.chunk)
    if total != size:
        raise TrainingError("bad-request", f"request: {total} bytes: {size} were promised")
    return task, b"".join(parts), head.task.signature
