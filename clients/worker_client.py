"""The ClientApp reaches the worker through this module: it starts it on first use, sends a task, and follows it.

Imports neither torch nor transformers: Flower starts a new process for every message.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clients.runtime.paths import lock_path, log_dir, make_state_dir, python_path, socket_path
from clients.site import SiteConfig
from clients.worker.progress import format_progress
from fedcompress.config.train_task import TrainTask
from fedcompress.errors import ProcessError, TrainingError
from fedcompress.proto.v1 import worker_pb2, worker_pb2_grpc
from fedcompress.storage.locks import holder

CHUNK = 1 << 20  # bytes of the downlink in one message of the stream
CONNECT_TIMEOUT = 1.0  # seconds that a worker has to answer in one attempt
START_TIMEOUT = 60.0  # seconds until a new worker answers
ATTEMPTS = 2  # a worker that dies in a round is started again once
STARTED: list[subprocess.Popen[bytes]] = []  # workers outlive their handles on purpose


def start_worker(site_file: Path, site: SiteConfig, owner: int, *, local: bool = False) -> subprocess.Popen[bytes]:
    """Start the site's worker in a session of its own, so that it outlives the caller.

    Args:
        site_file: path of site.toml.
        site: what it says; ``state_dir`` may be another.
        owner: id of the process with which the worker ends.
        local: the tasks are made on this machine, and have no signature of a coordinator.

    Returns:
        The process; what it prints goes to ``worker.log`` in the folder of logs.
    """
    logs = make_state_dir(site.state_dir)
    command = [sys.executable, "-m", "clients.worker.main", "--site", str(site_file), "--owner", str(owner)]
    command += ["--state-dir", str(site.state_dir), "--quiet", *(["--local"] if local else [])]
    with (logs / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": python_path()},
        )
    STARTED.append(process)
    return process


def owner_pid() -> int:
    """Return the process id of the SuperNode above this process, or of this process's parent if there is none."""
    import psutil

    for parent in psutil.Process().parents():
        if any("flower-supernode" in part for part in parent.cmdline()[:3]):
            return parent.pid
    return os.getppid()


def _ready(channel: Any, timeout: float) -> bool:
    """Return whether somebody answers on a channel within ``timeout`` seconds."""
    import grpc

    try:
        grpc.channel_ready_future(channel).result(timeout=timeout)
    except grpc.FutureTimeoutError:
        return False
    return True


def _connect(site_file: Path, site: SiteConfig) -> Any:
    """Return a ready channel to the worker, which is started if nobody answers.

    Raises:
        ProcessError: the worker did not come up; says where its log is.
    """
    import grpc

    address = f"unix:{socket_path(site.state_dir)}"
    channel = grpc.insecure_channel(address)
    if _ready(channel, CONNECT_TIMEOUT):
        return channel
    channel.close()
    process = start_worker(site_file, site, owner_pid())
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        channel = grpc.insecure_channel(address)
        if _ready(channel, CONNECT_TIMEOUT):
            return channel
        channel.close()
        # one that was started by hand may hold the state directory, and still be loading
        if process.poll() is not None and not holder(lock_path(site.state_dir)):
            break
    log = log_dir(site.state_dir) / "worker.log"
    raise ProcessError(f"worker: site {site.name}: did not start (exit {process.poll()}): see {log}")


def _requests(task: TrainTask, bundle: bytes, signature: str = "") -> Iterator[worker_pb2.TrainRequest]:
    """Yield a request as ``Train`` reads it: the header, then the downlink in chunks."""
    header = worker_pb2.TaskHeader(task_json=task.to_json(), payload_size=len(bundle), signature=signature)
    yield worker_pb2.TrainRequest(task=header)
    for at in range(0, len(bundle), CHUNK):
        yield worker_pb2.TrainRequest(chunk=bundle[at : at + CHUNK])


def run_round(
    site_file: Path,
    site: SiteConfig,
    task: TrainTask,
    bundle: bytes,
    log: Callable[[str], None],
    on_progress: Callable[[worker_pb2.Progress], None] = lambda note: None,
    *,
    signature: str = "",
) -> tuple[bytes, bool]:
    """Send a round to the worker, and wait for its reply.

    A worker that dies in the round is started again once, and asked again.

    Args:
        site_file: path of site.toml, with which a worker is started.
        site: what it says.
        task: the round.
        bundle: the downlink, concatenated envelopes.
        log: takes lines of text about what the worker does.
        on_progress: takes the worker's progress notes.
        signature: the coordinator's signature of task and bundle, hex; empty if there is none.

    Returns:
        The payload, and whether it was answered from the outbox.

    Raises:
        TrainingError: the worker reports a failure, or died twice.
        ProcessError: the worker does not start.
    """
    import grpc

    for attempt in range(1, ATTEMPTS + 1):
        channel = _connect(site_file, site)
        try:
            events = worker_pb2_grpc.WorkerStub(channel).Train(_requests(task, bundle, signature))
            return _follow(events, log, on_progress)
        except grpc.RpcError as error:
            log(f"the worker was lost in round {task.round}, attempt {attempt}: {error.code().name}")
        finally:
            channel.close()
    raise TrainingError("worker-lost", f"worker: site {site.name}: died twice in round {task.round}")


def _follow(
    events: Any, log: Callable[[str], None], on_progress: Callable[[worker_pb2.Progress], None]
) -> tuple[bytes, bool]:
    """Read the events of a round to their end.

    Returns:
        The payload, and whether it was answered from the outbox.

    Raises:
        TrainingError: the worker reports a failure, or the reply is cut off.
    """
    header = None
    chunks: list[bytes] = []
    for event in events:
        match event.WhichOneof("item"):
            case "progress":
                log(format_progress(event.progress))
                on_progress(event.progress)
            case "failure":
                raise TrainingError(event.failure.code, event.failure.message)
            case "reply":
                header = event.reply
            case "chunk":
                chunks.append(event.chunk)
    payload = b"".join(chunks)
    if header is None or len(payload) != header.payload_size:
        raise TrainingError("worker-lost", "worker: the reply is incomplete")
    return payload, header.replayed
