"""Several commands of a site need these: its worker's status, and the environment of processes that they start."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clients.runtime.paths import lock_path, python_path, socket_path
from fedcompress.errors import ConfigError
from fedcompress.proto.v1 import worker_pb2, worker_pb2_grpc
from fedcompress.storage.locks import holder

ANSWER = 2.0  # seconds that a worker has to answer
COUNTS = ("bytes_received", "bytes_sent", "requests", "replies")  # 64-bit fields, beside those that end in _bytes


def site_path(text: str) -> Path:
    """Return the absolute path of a site.toml.

    Raises:
        ConfigError: there is no such file.
    """
    path = Path(text)
    if not path.is_file():
        raise ConfigError("SITE", text, "must be a site.toml: `fedcompress site init` writes one")
    return path.resolve()


def read_worker_status(state_dir: Path, timeout: float = ANSWER) -> worker_pb2.StatusReply | None:
    """Return the status of the worker in a state directory; None if none answers within ``timeout`` seconds."""
    import grpc

    with grpc.insecure_channel(f"unix:{socket_path(state_dir)}") as channel:
        try:
            reply: worker_pb2.StatusReply = worker_pb2_grpc.WorkerStub(channel).Status(
                worker_pb2.StatusRequest(), timeout=timeout
            )
        except grpc.RpcError:
            return None
    return reply


def no_worker(state_dir: Path) -> str:
    """Return why no worker answers, in one line."""
    pid = holder(lock_path(state_dir))
    if pid:
        return f"a worker (pid {pid}) holds {state_dir} but does not answer: it is starting, or hangs"
    return f"no worker runs on {state_dir}: `fedcompress site up` starts one"


def status_to_dict(reply: worker_pb2.StatusReply) -> dict[str, Any]:
    """Return a status as values for JSON, by the names of the fields."""
    from google.protobuf.json_format import MessageToDict

    whole: dict[str, Any] = MessageToDict(
        reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return {key: _number(key, value) for key, value in whole.items()}


def _number(key: str, value: Any) -> Any:
    """Return a value of a field as a number where protobuf, which writes 64-bit numbers as text, has made it text."""
    if isinstance(value, list):
        return [{k: _number(k, v) for k, v in row.items()} for row in value]
    return int(value) if key.endswith("_bytes") or key in COUNTS else value


def progress_line(reply: worker_pb2.StatusReply) -> str:
    """Return what a worker is doing, in one line."""
    ranks = "" if reply.ranks_ready == reply.ranks else f", {reply.ranks_ready} of {reply.ranks} ranks ready"
    if reply.phase == "idle":
        last = f", last was run {reply.run} round {reply.round}" if reply.run else ""
        return f"waiting for the coordinator{last}{ranks}"
    line = f"run {reply.run} round {reply.round}: {reply.phase}"
    if reply.steps:
        line += f" {reply.step}/{reply.steps} loss {reply.loss:.4f}"
    return line + ranks


def python_environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment and ``more``, in which ``python -m clients...`` works from any folder."""
    return {**os.environ, **more, "PYTHONPATH": python_path()}


def is_terminal() -> bool:
    """Return whether stdout is a terminal, which somebody watches."""
    return sys.stdout.isatty()
