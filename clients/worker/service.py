"""The worker's gRPC service carries a round from the ClientApp into the warm worker, and its reply back.

It is served on a Unix socket in the site's state directory, so only processes of this machine and user reach it. Two
services share that socket: ``Worker`` (here) is called by the ClientApp and by the site's commands, ``Ranks`` (see
``clients.worker.rank_group``) by the training ranks. A round passes through four processes:

1. The *ClientApp*, which Flower starts for each message (``clients.app``), calls ``Train`` through
   ``clients.worker_client``. The request is a stream: first a header with the task as JSON, the size of the downlink
   and the coordinator's signature; then the downlink in chunks of 1 MiB, so that no single message meets gRPC's limit.
2. The *worker* (``clients.worker.main``) stays from round to round. ``Train`` starts one thread for the round
   (``_Round``), which runs ``RoundRunner``: it applies the downlink, and later encodes and stores the reply.
3. The *ranks*, one process each (``clients.training.rank``), get the round as a job through ``RankGroup``, train with
   the model that they keep loaded, and report.
4. ``Train`` streams back the progress notes and then the reply, again in chunks, or a failure with its code.

What happens when one of them dies:

- The ClientApp: its stream ends, but the round's thread goes on. The same request attaches to it again, or is answered
  from the outbox once the reply is stored.
- The worker: ``clients.worker_client`` starts another and asks it again, once. A round whose reply was committed is
  answered from the outbox; any other is done again from the stored state.
- A rank: its stream to the worker breaks, all ranks start afresh, and the round's job is repeated
  (see ``clients.worker.main.keep_ranks`` and ``RoundRunner``).
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
from clients.runtime.malloc import release_memory
from clients.site import SiteConfig
from clients.state.counters import Counters
from clients.state.site_state import SiteState
from clients.worker.progress import format_progress
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
    error_name,
)
from fedcompress.proto.v1 import worker_pb2, worker_pb2_grpc
from fedcompress.storage.disk_space import reserve_space
from fedcompress.storage.failpoints import failpoint

LOG = logging.getLogger("fedcompress.worker")
CHUNK = 1 << 20  # bytes of the reply in one message of the stream
MAX_PAYLOAD = 1 << 36  # bytes of a downlink; one that promises more is refused before it is read
FOLLOW_POLL = 1.0  # seconds between looks at whether a follower's call is still open
Event = worker_pb2.TrainEvent


class _Round(threading.Thread):
    """Runs one round in a thread of its own; any number of callers may follow its events."""

    def __init__(
        self,
        runner: RoundRunner,
        counters: Counters,
        task: TrainTask,
        bundle: bytes,
        signature: str,
        state_dir: Path,
    ) -> None:
        """Prepare the thread; ``start`` runs it.

        Args:
            runner: does the round.
            counters: where a failure is noted, for `site status`.
            task: what is asked of the site.
            bundle: the downlink, concatenated envelopes.
            signature: the coordinator's signature of task and bundle, hex; empty if there is none.
            state_dir: the site's state directory, which a failure for lack of disk space names.
        """
        super().__init__(name=f"round-{task.round}", daemon=True)
        self.task = task
        self._runner = runner
        self._counters = counters
        self._bundle = bundle
        self._signature = signature
        self._state_dir = state_dir
        self._changed = threading.Condition()  # guards all that follows; notified at each change
        self._events: list[Event] = []  # progress notes, in order
        self.progress_at = time.monotonic()  # when the last progress note came
        self.reply: Reply | None = None
        self.failure: worker_pb2.Failure | None = None

    def run(self) -> None:
        with log_round(self.task.run, self.task.round):
            self._run()
        release_memory()

    def _run(self) -> None:
        """Run the round, and turn whatever goes wrong into a failure that followers are sent."""
        self._record_refusal()
        try:
            with reserve_space(self._state_dir):
                reply = self._runner.run(self.task, self._bundle, self._add_progress, self._signature)
        except FedCompressError as error:
            LOG.warning("round %d failed: %s", self.task.round, error)
            self._finish(failure=_build_failure(error))
        except OSError as error:
            LOG.exception("round %d failed", self.task.round)
            message = f"site.state_dir: {error.strerror or error}"
            self._finish(failure=worker_pb2.Failure(code="os-error", message=message))
        except Exception as error:  # the round's thread is the last place that can report it
            LOG.exception("round %d failed", self.task.round)
            self._finish(failure=worker_pb2.Failure(code="internal", message=f"{type(error).__name__}: {error}"))
        else:
            self._finish(reply=reply)

    def _record_refusal(self) -> None:
        """Note for `site status` why the coordinator refused this site's last update, where the task says so."""
        if not self.task.refused:
            return
        number, _, text = self.task.refused[0].partition(": ")  # the newest, as ``round: code: message``
        code, _, message = text.partition(": ")
        round_ = int(number) if number.isdecimal() else max(self.task.round - 1, 0)
        self._counters.failed(self.task.run, round_, "refused", f"as {code}: {message}")

    def _add_progress(self, **fields: Any) -> None:
        """Log a progress note, and hand it to all followers; ``fields`` are those of ``Progress``."""
        note = worker_pb2.Progress(**fields)
        LOG.info("%s", f"round {self.task.round}: {format_progress(note)}")
        with self._changed:
            self._events.append(Event(progress=note))
            self.progress_at = time.monotonic()
            self._changed.notify_all()

    def _finish(self, reply: Reply | None = None, failure: worker_pb2.Failure | None = None) -> None:
        if failure is not None:
            self._counters.failed(self.task.run, self.task.round, failure.code, failure.message)
        with self._changed:
            self.reply = reply
            self.failure = failure
            self._changed.notify_all()

    @property
    def is_finished(self) -> bool:
        """Return whether there is a reply or a failure."""
        with self._changed:
            return self.reply is not None or self.failure is not None

    @property
    def last_progress(self) -> worker_pb2.Progress:
        """The last progress note; before the first one, a note that the round is being received."""
        return self._events[-1].progress if self._events else worker_pb2.Progress(phase="receive")

    def follow(self, is_active: Callable[[], bool]) -> Iterator[Event]:
        """Yield all progress so far and to come, then the reply in chunks, or the failure.

        Ends early when ``is_active`` says that the caller has gone: it would hold one of the server's threads.
        """
        seen = 0
        while True:
            with self._changed:
                while len(self._events) == seen and self.reply is None and self.failure is None:
                    if not is_active():
                        return
                    self._changed.wait(timeout=FOLLOW_POLL)
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


def _build_failure(error: FedCompressError) -> worker_pb2.Failure:
    """Return an error as the coordinator is told of it: a stable code, and the message."""
    if isinstance(error, NoSpaceError):
        return worker_pb2.Failure(code="disk-full", message=str(error))
    has_code = isinstance(error, MismatchError | TrainingError | AdmissionError | IdentityError)
    code = error.code if has_code else error_name(error)  # type: ignore[attr-defined]
    return worker_pb2.Failure(code=code, message=str(error))


class WorkerService(worker_pb2_grpc.WorkerServicer):
    """Answers the calls ``Train``, ``Status`` and ``Stop`` of the gRPC service ``Worker``."""

    def __init__(self, site: SiteConfig, site_state: SiteState, rank_group: RankGroup, counters: Counters) -> None:
        """Get ready to run rounds, one at a time.

        Args:
            site: the checked site.toml.
            site_state: the site's durable state.
            rank_group: the ranks that train.
            counters: bytes received and sent, and the last failure.
        """
        self._site = site
        self._counters = counters
        self._started = time.monotonic()
        self._rank_group = rank_group
        self._runner = RoundRunner(site, site_state, rank_group)
        self._lock = threading.Lock()  # guards the choice of the current round
        self._current: _Round | None = None  # the round that runs, or the last one that did

    def Train(self, request_iterator: Iterator[worker_pb2.TrainRequest], context: Any) -> Iterator[Event]:
        """Run a round, or attach to it if it is running already; yield its events."""
        try:
            task, bundle, signature = _read_request(request_iterator)
        except FedCompressError as error:
            yield Event(failure=_build_failure(error))
            return
        self._counters.received(task.run, len(bundle))
        with self._lock:
            current = self._current
            if current is None or current.is_finished:
                current = _Round(self._runner, self._counters, task, bundle, signature, self._site.state_dir)
                self._current = current
                current.start()
        if _without_node_fields(current.task) != _without_node_fields(task):
            message = f"round {current.task.round} of run {current.task.run} is still running"
            yield Event(failure=worker_pb2.Failure(code="busy", message=message))
            return
        yield from current.follow(context.is_active)
        if current.reply is not None and context.is_active():
            self._counters.sent(task.run, len(current.reply.payload))

    def Status(self, request: worker_pb2.StatusRequest, context: Any) -> worker_pb2.StatusReply:
        """Return what the worker is doing, and what its processes use of the machine."""
        current = self._current
        reply = build_status(self._site.name, self._rank_group, self._counters)
        reply.uptime_seconds = time.monotonic() - self._started
        reply.model_loads = self._runner.model_loads
        if current is None:
            return reply
        note = current.last_progress
        reply.run = current.task.run
        reply.round = current.task.round
        reply.rounds = current.task.rounds
        reply.phase = "idle" if current.is_finished else note.phase
        reply.step = note.step
        reply.steps = note.steps
        reply.loss = note.loss
        reply.text = note.text
        reply.phase_seconds = time.monotonic() - current.progress_at
        return reply

    def Stop(self, request: worker_pb2.StopRequest, context: Any) -> worker_pb2.StopReply:
        """End the worker and its ranks, as SIGTERM does, once this call is answered."""
        context.add_callback(lambda: os.kill(os.getpid(), signal.SIGTERM))
        return worker_pb2.StopReply()


def _without_node_fields(task: TrainTask) -> TrainTask:
    """Return a task without what the coordinator fills in for the node that it asks.

    The same round may be asked for again under another node id, and then with other digests of merged updates.
    """
    return replace(task, merged=(), site="", refused=())


def _read_request(requests: Iterator[worker_pb2.TrainRequest]) -> tuple[TrainTask, bytes, str]:
    """Read a whole request.

    Returns:
        The task, the downlink and the coordinator's signature (hex, empty if there is none).

    Raises:
        TrainingError: ``bad-request``: the header is missing, or fewer bytes came than it promised.
        LimitError: the downlink is larger than promised, or than ``MAX_PAYLOAD``.
        ConfigError: the task is malformed.
    """
    header = next(requests, None)
    if header is None or not header.HasField("task"):
        raise TrainingError("bad-request", "request: its first item must be the task")
    size = header.task.payload_size
    if size > MAX_PAYLOAD:
        raise LimitError(f"request.payload_size: {size}: at most {MAX_PAYLOAD}")
    task = TrainTask.from_json(header.task.task_json)
    chunks: list[bytes] = []
    total = 0
    for item in requests:
        total += len(item.chunk)
        if total > size:
            raise LimitError(f"request: more than the {size} bytes that were promised")
        chunks.append(item.chunk)
    if total != size:
        raise TrainingError("bad-request", f"request: {total} bytes: {size} were promised")
    return task, b"".join(chunks), header.task.signature
