"""A small web server answers with the page, ``/api/snapshot`` and ``/metrics``. Nothing can be changed through it."""

from __future__ import annotations

import hmac
import ipaddress
import json
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fedcompress.errors import ConfigError, FedCompressError, MissingPackageError
from server.watch.view import Snapshot, take_snapshot

LEAST_TOKEN = 16  # characters of a token
MOST_THREADS = 32  # requests that are answered at a time
PATIENCE = 10.0  # seconds that a connection may say nothing


class Looks:
    """Shares a snapshot among all who ask within a second; where looking takes long, for longer.

    Args:
        look: takes a snapshot.
        clock: seconds, monotonic.
    """

    def __init__(self, look: Callable[[], Snapshot], clock: Callable[[], float] = time.monotonic) -> None:
        self._look = look
        self._clock = clock
        self._lock = threading.Lock()
        self._last: Snapshot | None = None
        self._until = 0.0

    def __call__(self) -> Snapshot:
        """Return the last snapshot, or a new one."""
        with self._lock:
            began = self._clock()
            if self._last is None or began >= self._until:
                self._last = self._look()
                self._until = began + max(1.0, 5 * (self._clock() - began))
            return self._last


def is_loopback(host: str) -> bool:
    """Return whether nobody but this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_own_host(header: str, names: Sequence[str]) -> bool:
    """Return whether a Host header names this server, which has some names.

    A page of another site can have its name resolve to our address, and would then read what we say (DNS
    rebinding). It cannot do so for an address that is written in digits, so only names have to be listed.
    """
    try:
        host = urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return bool(host) and host in names
    return True


class WatchServer(ThreadingHTTPServer):
    """Serves from its making until ``close``, or until its block is left.

    Args:
        looks: takes snapshots.
        host: address to listen at.
        port: 0 takes a free one.
        token: text that a request must carry; empty: none.
        names: more names that the Host header may have.

    Attributes:
        token: text that a request must carry; empty: none.
        url: address of the page.

    Raises:
        ConfigError: the address cannot be listened at.
    """

    daemon_threads = True

    def __init__(self, looks: Looks, host: str, port: int, token: str, names: Sequence[str]) -> None:
        self.looks = looks
        self.token = token
        self.names = ["localhost", host.lower(), socket.gethostname().lower(), *(n.lower() for n in names)]
        self._room = threading.BoundedSemaphore(MOST_THREADS)
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError("--host, --port", f"{host}, {port}", f"cannot be listened at: {error}") from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.server_address[1]}/"
        self._thread = threading.Thread(target=self.serve_forever, name="watch", daemon=True)
        self._thread.start()

    def __enter__(self) -> WatchServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop answering, and free the port."""
        self.shutdown()
        self.server_close()
        self._thread.join()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, or not at all if there are too many."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a request, and give the thread's place back at the end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print one line about an error; a client that went away is none of ours."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            print(f"watch: {type(error).__name__}: {error}", file=sys.stderr)


class Handler(BaseHTTPRequestHandler):
    """Answers GET requests of three paths."""

    server: WatchServer
    server_version = "fedcompress"
    sys_version = ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        """Answer a request, after a check of who asks."""
        path, _, query = self.path.partition("?")
        if not is_own_host(self.headers.get("Host", ""), self.server.names):
            self._say(421, "this server is not known by that name: see --allow-host\n")
        elif not self._is_known(query):
            self._say(
                401, "a token is needed: ?token=... or Authorization: Bearer ...\n", ("WWW-Authenticate", "Bearer")
            )
        else:
            self._answer(path)

    def _is_known(self, query: str) -> bool:
        if not self.server.token:
            return True
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            try:
                token = parse_qs(query, max_num_fields=10).get("token", [""])[0]
            except ValueError:
                token = ""
        return hmac.compare_digest(token.strip().encode("utf-8", "replace"), self.server.token.encode())

    def _answer(self, path: str) -> None:
        try:
            match path:
                case "/":
                    from server.watch.page import POLICY, render

                    policy = ("Content-Security-Policy", POLICY)
                    self._say(200, render(self.server.looks()), policy, kind="text/html; charset=utf-8")
                case "/api/snapshot":
                    text = json.dumps(self.server.looks().to_dict(), allow_nan=False)
                    self._say(200, text, kind="application/json")
                case "/metrics":
                    from server.watch.metrics import CONTENT_TYPE, to_prometheus

                    self._say(200, to_prometheus(self.server.looks()).decode(), kind=CONTENT_TYPE)
                case _:
                    self._say(404, "there are /, /api/snapshot and /metrics\n")
        except MissingPackageError as error:
            self._say(501, f"{error}\n")
        except FedCompressError as error:
            self._say(503, f"{error}\n")

    def _only_get(self) -> None:
        self._say(405, "only GET is answered\n", ("Allow", "GET"))

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _only_get

    def _say(self, status: int, text: str, *headers: tuple[str, str], kind: str = "text/plain; charset=utf-8") -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            *headers,
        ):
            self.send_header(name, value)
        if not any(name == "Content-Security-Policy" for name, _ in headers):
            self.send_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what cannot be parsed with the same headers, and without repeating it.

        Args:
            code: status to answer with.
            message: of the base class; it may repeat the request, and is left out.
            explain: of the base class; left out as well.
        """
        self.close_connection = True
        self._say(code, "this request cannot be answered\n")

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: a token may be in the request line."""


def serve(
    state_dir: Path,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str = "",
    *,
    run: str = "",
    allowed_hosts: Sequence[str] = (),
) -> WatchServer:
    """Start a web server for a state directory, in threads of this process.

    Args:
        state_dir: the coordinator's.
        host: address to listen at. Only at a loopback address is no token needed; elsewhere one is made up.
        port: 0 takes a free one.
        token: that every request must carry; empty: none, or a new one.
        run: name of the run; empty: the last that was started.
        allowed_hosts: more names that the Host header may have, such as a reverse proxy's.

    Returns:
        The server, which is to be closed.

    Raises:
        ConfigError: the state directory, the run, the address or the token is wrong.
    """
    if token and (len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token):
        raise ConfigError("--token", "(not shown)", f"must be {LEAST_TOKEN} ASCII characters or more, without spaces")
    if not token and not is_loopback(host):
        token = secrets.token_urlsafe(24)
    looks = Looks(lambda: take_snapshot(state_dir, run))
    looks()  # what is wrong is said at once
    return WatchServer(looks, host, port, token, allowed_hosts)
