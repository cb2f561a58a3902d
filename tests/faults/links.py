"""A link between two machines, in user space: rate, latency and loss over loopback TCP."""

from __future__ import annotations

import contextlib
import queue
import random
import socket
import threading
import time
from dataclasses import dataclass

SEGMENT = 1448  # bytes of a TCP segment on Ethernet
RETRANSMIT = 0.2  # seconds, the least time-out that Linux waits before it sends a segment again


@dataclass(frozen=True)
class Link:
    """``mbit`` a second each way, ``rtt`` in seconds, ``loss`` as a share of segments.

    A lost segment is not seen by TCP's user but as time: what comes after it waits one more round trip, or the
    least retransmission time-out if that is longer. Congestion control is not modelled.
    """

    mbit: float
    rtt: float = 0.0
    loss: float = 0.0


class ShapedProxy:
    """Forwards connections to one address over a link that may be changed at any time; counts bytes."""

    def __init__(self, link: Link, seed: int = 0) -> None:
        self.link = link
        self.carried = {"up": 0, "down": 0}
        self._free = {"up": 0.0, "down": 0.0}  # when the line is free again, by direction
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._target = ("127.0.0.1", 0)
        self._open: list[socket.socket] = []

    def to(self, address: str) -> str:
        """Start forwarding to ``host:port``; returns the proxy's own address."""
        host, port = address.rsplit(":", 1)
        self._target = (host, int(port))
        threading.Thread(target=self._accept, daemon=True).start()
        return self.address

    def close(self) -> None:
        """Close the listener and all connections."""
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Close all connections; what was on its way is lost, and the line is free."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()
            self._open, self._free = [], {"up": 0.0, "down": 0.0}

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open += [client, server]
            for source, sink, way in ((client, server, "up"), (server, client, "down")):
                late: queue.Queue[tuple[float, bytes]] = queue.Queue(maxsize=64)
                threading.Thread(target=self._read, args=(source, late, way), daemon=True).start()
                threading.Thread(target=self._write, args=(sink, late), daemon=True).start()

    def _read(self, source: socket.socket, late: queue.Queue[tuple[float, bytes]], way: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                late.put((self._due(len(data), way), data))
        late.put((0.0, b""))

    def _due(self, size: int, way: str) -> float:
        """When the last of so many bytes arrives; all connections share the line."""
        with self._lock:
            link = self.link
            begins = max(time.monotonic(), self._free[way])
            ends = begins + 8 * size / (link.mbit * 1e6)
            lost = sum(self._random.random() < link.loss for _ in range(-(-size // SEGMENT)))
            self._free[way] = ends
            self.carried[way] += size
            return ends + link.rtt / 2 + lost * max(link.rtt, RETRANSMIT)

    def _write(self, sink: socket.socket, late: queue.Queue[tuple[float, bytes]]) -> None:
        latest = 0.0
        with contextlib.suppress(OSError):
            while True:
                due, data = late.get()
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                latest = max(latest, due)  # TCP keeps the order: what follows a lost segment waits for it
                time.sleep(max(0.0, latest - time.monotonic()))
                sink.sendall(data)
