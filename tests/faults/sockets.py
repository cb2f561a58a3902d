"""A transport over loopback TCP, without Flower and its polling: for many kills of real processes in little time."""

from __future__ import annotations

import json
import selectors
import socket
import struct
import time
from collections.abc import Iterable
from typing import Any

from fedcompress.config.train_task import TrainTask
from server.transport.base import Incoming

HEAD = struct.Struct("<II")  # bytes of JSON and of payload


def frame(fields: dict[str, Any], payload: bytes = b"") -> bytes:
    """A message."""
    text = json.dumps(fields).encode()
    return HEAD.pack(len(text), len(payload)) + text + payload


def take_frame(buffer: bytearray) -> tuple[dict[str, Any], bytes] | None:
    """The first whole message of a buffer, which is shortened by it; None if there is none yet."""
    if len(buffer) < HEAD.size:
        return None
    text, payload = HEAD.unpack_from(buffer)
    if len(buffer) < HEAD.size + text + payload:
        return None
    start = HEAD.size + text
    fields, body = json.loads(buffer[HEAD.size : start]), bytes(buffer[start : start + payload])
    del buffer[: start + payload]
    return fields, body


class SocketTransport:
    """The coordinator's end: sites connect, and say which node they are."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), reuse_port=False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._buffers: dict[socket.socket, bytearray] = {}
        self._nodes: dict[int, socket.socket] = {}
        self._awaited: set[int] = set()
        self._inbox: list[Incoming] = []

    def nodes(self) -> list[int]:
        """Connected nodes."""
        self._pump(0)
        return list(self._nodes)

    def send(self, node: int, task: TrainTask, payload: bytes, signature: str = "") -> int:
        """Send a task; a node that has gone is answered for."""
        self._awaited.add(node)
        connection = self._nodes.get(node)
        try:
            if connection is None:
                raise OSError("not connected")
            connection.sendall(frame({"task": task.to_json(), "signature": signature}, payload))
        except OSError:
            self._lose(node)
        return 0

    def receive(self, timeout: float) -> Iterable[Incoming]:
        """Replies that have come."""
        deadline = time.monotonic() + timeout
        while not self._inbox and (left := deadline - time.monotonic()) > 0:
            self._pump(left)
        inbox, self._inbox = self._inbox, []
        return inbox

    def forget(self, nodes: Iterable[int]) -> None:
        """Take no replies of these."""
        self._awaited -= set(nodes)

    def close(self) -> None:
        """Tell all sites that it is over."""
        for connection in self._nodes.values():
            connection.sendall(frame({"end": True}))

    def _lose(self, node: int) -> None:
        self._nodes.pop(node, None)
        if node in self._awaited:
            self._awaited.discard(node)
            self._inbox.append(Incoming(node, {}, b"", error="the connection was lost"))

    def _pump(self, timeout: float) -> None:
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._listener:
                connection, _ = self._listener.accept()
                self._buffers[connection] = bytearray()
                self._selector.register(connection, selectors.EVENT_READ)
            else:
                self._read(key.fileobj)

    def _read(self, connection: Any) -> None:
        try:
            data = connection.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(connection)
            del self._buffers[connection]
            connection.close()
            for node in [n for n, c in self._nodes.items() if c is connection]:
                self._lose(node)
            return
        buffer = self._buffers[connection]
        buffer += data
        while (found := take_frame(buffer)) is not None:
            fields, payload = found
            node = fields["node"]
            if "hello" in fields:
                self._nodes[node] = connection
            elif node in self._awaited:
                self._awaited.discard(node)
                self._inbox.append(Incoming(node, fields["status"], payload))
