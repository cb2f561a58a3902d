"""A metering relay on loopback, through which a SuperNode connects, counts what the site exchanges with the SuperLink.

Bytes are counted that TCP carries on the site's side of the link: TLS, HTTP and Flower's records. Not counted are the
headers of TCP and IP, and what TCP sends again.
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

_RECORD = struct.Struct("<QQQ")  # life, bytes up, bytes down
BLOCK = 1 << 16  # bytes that are received at once
HELD = 1 << 18  # bytes of the receive buffer towards the client: what waits in it is not on the link yet
MAX_HEAD = 1 << 13  # bytes of the head of a CONNECT request
LAST_WORDS = 10.0  # seconds that the target may take to close after the client has: TLS says good-bye
CONNECT_TIMEOUT = 25.0  # seconds to connect; less than the SuperNode waits


@dataclass(frozen=True)
class Wire:
    """A wire count says how many bytes have crossed the link of a site since the counting began."""

    life: int  # random number that names the beginning of the count: counts of different lives do not compare
    up: int  # bytes from the site to the SuperLink
    down: int  # bytes from the SuperLink to the site


def wire_path(state_dir: Path) -> Path:
    """Return the file in which ``site up`` keeps the count of a site."""
    return state_dir / "wire"


def read_wire(state_dir: Path) -> Wire | None:
    """Read the count of a site so far; None if nobody counts."""
    try:
        data = wire_path(state_dir).read_bytes()
        while data != (again := wire_path(state_dir).read_bytes()):  # it was being written: read until it is stable
            data = again
    except OSError:
        return None
    return Wire(*_RECORD.unpack(data)) if len(data) == _RECORD.size else None


class Counter:
    """A counter keeps a count in a file that is always up to date. Use it as a context manager.

    Each counter begins a new life at 0, and deletes the file when it ends.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._life = secrets.randbits(62)
        self._up = 0
        self._down = 0
        self._file = -1

    def __enter__(self) -> Self:
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
        self.add()
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:  # a connection may outlive the count, and the file's number may be another file's by then
            os.close(self._file)
            self._file = -1
        self._path.unlink(missing_ok=True)

    def add(self, *, up: int = 0, down: int = 0) -> None:
        """Add so many bytes to the count."""
        with self._lock:
            self._up += up
            self._down += down
            if self._file >= 0:
                with contextlib.suppress(OSError):  # such as a full disk: counting must not break the connection
                    os.pwrite(self._file, _RECORD.pack(self._life, self._up, self._down), 0)

    @property
    def wire(self) -> Wire:
        """Return the count so far."""
        return Wire(self._life, self._up, self._down)


class MeteringRelay(socketserver.ThreadingTCPServer):
    """A metering relay forwards connections to one address, and counts their bytes. Use it as a context manager.

    Args:
        target: host and port that it connects to.
        counter: counts the bytes to and from the target.
        tunnel: whether a client asks by ``CONNECT`` before it is forwarded. Whatever address it asks for, it gets to
            the target; by TLS it sees whether that is whom it means.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, target: tuple[str, int], counter: Counter, *, tunnel: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Connection, bind_and_activate=False)
        self.target = target
        self.counter = counter
        self.tunnel = tunnel
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, HELD)
        self.server_bind()
        self.server_activate()

    @property
    def address(self) -> str:
        """Return HOST:PORT of the relay."""
        host, port = self.socket.getsockname()
        return f"{host}:{port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore an error in a connection: the SuperNode makes a broken one anew."""


class _Connection(socketserver.BaseRequestHandler):
    """One connection of a client (the near end) that is forwarded to the target (the far end)."""

    server: MeteringRelay

    def handle(self) -> None:
        """Connect to the target, and forward both ways until both ends have closed."""
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
            receiver = threading.Thread(target=self._forward_down, args=(far, near), daemon=True)
            receiver.start()
            self._forward_up(near, far)
            receiver.join(LAST_WORDS)
            _close(near, far)
            receiver.join()

    def _is_connect(self, near: socket.socket) -> bool:
        """Return whether the head of a request is a CONNECT; its client sends nothing more before it is answered."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if len(head) > MAX_HEAD or not (data := near.recv(BLOCK)):
                return False
            head += data
        return head.startswith(b"CONNECT ")

    def _forward_up(self, near: socket.socket, far: socket.socket) -> None:
        """Forward what the client sends, until it closes or the target does."""
        block = memoryview(bytearray(BLOCK))
        with contextlib.suppress(OSError):
            while size := near.recv_into(block):
                offset = 0
                while offset < size:
                    sent = far.send(block[offset:size])
                    offset += sent
                    self.server.counter.add(up=sent)
        with contextlib.suppress(OSError):
            far.shutdown(socket.SHUT_WR)

    def _forward_down(self, far: socket.socket, near: socket.socket) -> None:
        """Forward what the target sends, until it closes; it is counted also where the client has gone."""
        block = memoryview(bytearray(BLOCK))
        with contextlib.suppress(OSError):
            while size := far.recv_into(block):
                self.server.counter.add(down=size)
                with contextlib.suppress(OSError):
                    near.sendall(block[:size])
        _close(near)


def _close(*ends: socket.socket) -> None:
    """Shut down both directions of connections, which may be closed already."""
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
