"""The ClientApp's side of the worker: start it on first use, send a task, follow it.

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

from clients.runtime.paths import lock_path, log_dir, make_state_dir, socket_path
from clients.site import SiteConfig
from fedcompress.config.train_task import TrainTask
from fedcompress.errors import ProcessError, TrainingError
from fedcompress.proto.v1 import worker_pb2, worker_pb2_grpc
from fedcompress.storage.locks import holder

CHUNK = 1 << 20  # bytes
START_TIMEOUT = 60.0  # seconds until a new worker answers
STARTED: list[subprocess.Popen[bytes]] = []  # workers outlive their handles on purpose


def start_worker(site_file: Path, site: SiteConfig, owner: int) -> subprocess.Popen[bytes]:
    """Start the site's worker in a session of its own; it outlives the caller, not ``owner``."""
    logs = make_state_dir(site.state_dir)
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    command = [sys.executable, "-m", "clients.worker.main", "--site", str(site_file), "--owner", str(owner)]
    command += ["--state-dir", str(site.state_dir), "--quiet"]
    with (logs / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
        )
    STARTED.append(process)
    return process


def owner_pid() -> int:
    """The SuperNode above this process, or this process's parent if there is none."""
    import psutil

    for parent in psutil.Process().parents():
        if any("flower-supernode" in part for part in parent.cmdline()[:3]):
            return parent.pid
    return os.getppid()


def _ready(channel: Any, timeout: float) -> bool:
    import grpc

    try:
        grpc.channel_ready_future(channel).result(timeout=timeout)
    except grpc.FutureTimeoutError:
        return False
    return True


def _connect(site_file: Path, site: SiteConfig) -> Any:
    """A ready channel to the worker, which is started if nobody answers.

    Raises:
        ProcessError: the worker did not come up; says where its log is.
    """
    import grpc

    address = f"unix:{socket_path(site.state_dir)}"
    channel = grpc.insecure_channel(address)
    if _ready(channel, 1.0):
        return channel
    channel.close()
    process = start_worker(site_file, site, owner_pid())
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        channel = grpc.insecure_channel(address)
        if _ready(channel, 1.0):
            return channel
        channel.close()
        # one that was started by hand may hold the state directory, and still be loading
        if process.poll() is not None and not holder(lock_path(site.state_dir)):
            break
    log = log_dir(site.state_dir) / "worker.log"
    raise ProcessError(f"worker: site {site.name}: did not start (exit {process.poll()}): see {log}")


def _requests(task: TrainTask, bundle: bytes, signature: str = "") -> Iterator[worker_pb2.TrainRequest]:
    head = worker_pb2.TaskHeader(task_json=task.to_json(), payload_size=len(bundle), signature=signature)
    yield worker_pb2.TrainRequest(task=head)
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

    Returns:
        The payload, and whether it was answered from the outbox.

    Raises:
        TrainingError: the worker reports a failure, or died twice.
        ProcessError: the worker does not start.
    """
    import grpc

    for attempt in (1, 2):
        channel = _connect(site_file, site)
        try:
            return _follow(
                worker_pb2_grpc.WorkerStub(channel).Train(_requests(task, bundle, signature)), log, on_progress
            )
        except grpc.RpcError as error:
            log(f"the worker was lost in round {task.round}, attempt {attempt}: {error.code().name}")
        finally:
            channel.close()
    raise TrainingError("worker-lost", f"worker: site {site.name}: died twice in round {task.round}")


def _follow(
    events: Any, log: Callable[[str], None], on_progress: Callable[[worker_pb2.Progress], None]
) -> tuple[bytes, bool]:
    header, parts = None, []
    for event in events:
        match event.WhichOneof("item"):
            case "progress":
                note = event.progress
                steps = f" {note.step}/{note.steps} loss {note.loss:.4f}" if note.steps else ""
                log(f"{note.phase}{steps} {note.text}".rstrip())
                on_progress(note)
            case "failure":
                raise TrainingError(event.failure.code, event.failure.message)
            case "reply":
                header = event.reply
            case "chunk":
                parts.append(event.chunk)
    payload = b"".join(parts)
    if header is None or len(payload) != header.payload_size:
        raise TrainingError("worker-lost", "worker: the reply is incomplete")
    return payload, header.replayed
