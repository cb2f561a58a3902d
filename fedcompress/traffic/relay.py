"""Counts what a site exchanges with the SuperLink: a relay on loopback, through which the SuperNode connects.

Counted is what TCP carries on the site's side of the link: TLS, HTTP and Flower's records. Not counted are the headers
of TCP and IP, and what TCP sends again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import socketserver
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

_FORM = struct.Struct("<QQQ")
BLOCK = 1 << 16  # bytes
HELD = 1 << 18  # bytes that the relay's side of a connection may hold: what waits here is not on its way
MAX_HEAD = 1 << 13  # bytes of a CONNECT
LAST_WORDS = 10.0  # seconds that the target may take to close after the client has: TLS says good-bye
CONNECT_TIMEOUT = 25.0  # seconds, less than the SuperNode waits


@dataclass(frozen=True)
class Wire:
    """Bytes since the counting began: ``life`` names that beginning."""

    life: int
    up: int
    down: int


def wire_path(state_dir: Path) -> Path:
    """Where a site's ``up`` keeps its count."""
    return state_dir / "wire"


def read_wire(state_dir: Path) -> Wire | None:
    """The count so far; None if nobody counts."""
    try:
        data = wire_path(state_dir).read_bytes()
        while data != (again := wire_path(state_dir).read_bytes()):  # it was being written
            data = again
    except OSError:
        return None
    return Wire(*_FORM.unpack(data)) if len(data) == _FORM.size else None


class Counter:
    """A count in a file, which is always up to date; a new life each time. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._life, self._up, self._down = secrets.randbits(62), 0, 0
        self._file = -1

    def __enter__(self) -> Self:
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
        self.add()
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:  # a connection may outlive the count, and the number of the file be another's
            os.close(self._file)
            self._file = -1
        self._path.unlink(missing_ok=True)

    def add(self, *, up: int = 0, down: int = 0) -> None:
        """Count so many bytes more."""
        with self._lock:
            self._up += up
            self._down += down
            if self._file >= 0:
                with contextlib.suppress(OSError):  # a full disk
                    os.pwrite(self._file, _FORM.pack(self._life, self._up, self._down), 0)

    @property
    def wire(self) -> Wire:
        """The count so far."""
        return Wire(self._life, self._up, self._down)


class MeteringRelay(socketserver.ThreadingTCPServer):
    """Forwards connections to one address, and counts. Use it as a context manager.

    Args:
        target: host and port that it connects to.
        counter: of bytes to and from the target.
        tunnel: whether a client asks by ``CONNECT`` before it is forwarded. It gets to the target whatever it asks for:
            by TLS it sees whether that is whom it means.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, target: tuple[str, int], counter: Counter, *, tunnel: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Connection, bind_and_activate=False)
        self.target, self.counter, self.tunnel = target, counter, tunnel
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, HELD)
        self.server_bind()
        self.server_activate()

    @property
    def address(self) -> str:
        """HOST:PORT of the relay."""
        host, port = self.socket.getsockname()
        return f"{host}:{port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a connection that breaks is the SuperNode's to make anew."""


class _Connection(socketserver.BaseRequestHandler):
    server: MeteringRelay

    def handle(self) -> None:
        near: socket.socket = self.request
        near.settimeout(CONNECT_TIMEOUT)
        if self.server.tunnel and not self._is_connect(near):
            near.sendall(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
            return
        with socket.create_connection(self.server.target, timeout=CONNECT_TIMEOUT) as far:
            if self.server.tunnel:
                near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            for end in (near, far):
                end.settimeout(None)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = threading.Thread(target=self._back, args=(far, near), daemon=True)
            back.start()
            self._forth(near, far)
            back.join(LAST_WORDS)
            _close(near, far)
            back.join()

    def _is_connect(self, near: socket.socket) -> bool:
        """Whether the head of a request is a CONNECT; a client sends nothing after it before it is answered."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if len(head) > MAX_HEAD or not (data := near.recv(BLOCK)):
                return False
            head += data
        return head.startswith(b"CONNECT ")

    def _forth(self, near: socket.socket, far: socket.socket) -> None:
        """What the client sends, until it closes or the target does."""
        block = memoryview(bytearray(BLOCK))
        with contextlib.suppress(OSError):
            while size := near.recv_into(block):
                at = 0
                while at < size:
                    sent = far.send(block[at:size])
                    at += sent
                    self.server.counter.add(up=sent)
        with contextlib.suppress(OSError):
            far.shutdown(socket.SHUT_WR)

    def _back(self, far: socket.socket, near: socket.socket) -> None:
        """What the target sends, until it closes; a client that has gone does not make it less."""
        block = memoryview(bytearray(BLOCK))
        with contextlib.suppress(OSError):
            while size := far.recv_into(block):
                self.server.counter.add(down=size)
                with contextlib.suppress(OSError):
                    near.sendall(block[:size])
        _close(near)


def _close(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
