"""A TCP proxy on loopback that counts the bytes of both directions."""

from __future__ import annotations

import contextlib
import socket
import threading


class CountingProxy:
    """Forwards connections to one address; ``up`` is client to server, ``down`` the way back, in bytes."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._target = ("127.0.0.1", 0)
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self.up = 0
        self.down = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def to(self, address: str) -> str:
        """Start forwarding to ``host:port``; returns the proxy's own address."""
        host, port = address.rsplit(":", 1)
        self._target = (host, int(port))
        if not self._thread.is_alive():
            self._thread.start()
        return self.address

    def close(self) -> None:
        """Close the listener and all connections."""
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:  # the server has ended; so does this connection
                client.close()
                continue
            with self._lock:
                self._open += [client, server]
            for source, sink, name in ((client, server, "up"), (server, client, "down")):
                threading.Thread(target=self._pump, args=(source, sink, name), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, name: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                with self._lock:
                    setattr(self, name, getattr(self, name) + len(data))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
