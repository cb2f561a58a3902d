"""The relay: what goes through it is unchanged and counted, to the byte, as a capture of the packets has it."""

from __future__ import annotations

import json
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.network.proxy_route import Route, find_route, proxy_variables
from fedcompress.traffic.relay import HELD, Counter, MeteringRelay, Wire, read_wire, wire_path
from tests.packets import Capture, can_capture

READ = """
import json, pathlib, sys
from fedcompress.traffic.relay import read_wire
print(json.dumps(vars(read_wire(pathlib.Path(sys.argv[1])))))
"""


class Echo:
    """Answers each byte with three."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.closed = threading.Semaphore(0)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1 << 16):
                    connection.sendall(data * 3)
            except OSError:
                pass
        self.closed.release()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


def talk(connection: socket.socket, data: bytes) -> bytes:
    """Send all, and read the threefold answer at the same time."""
    thread = threading.Thread(target=connection.sendall, args=(data,))
    thread.start()
    answer = bytearray()
    while len(answer) < 3 * len(data):
        answer += connection.recv(1 << 16)
    thread.join()
    return bytes(answer)


def connected(relay: MeteringRelay) -> socket.socket:
    host, port = relay.address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=20)


def test_bytes_pass_unchanged_and_are_counted(tmp_path: Path, echo: Echo) -> None:
    draw = random.Random(0)
    sizes = [1, 1000, HELD + 1, 1_000_000]
    with Counter(wire_path(tmp_path)) as counter, MeteringRelay(("127.0.0.1", echo.port), counter) as relay:
        for size in sizes:
            data = draw.randbytes(size)
            with connected(relay) as connection:
                answers = talk(connection, data)
            assert sorted(answers) == sorted(data * 3)
        found = read_wire(tmp_path)
        assert found == counter.wire == Wire(counter.wire.life, sum(sizes), 3 * sum(sizes))
        other = subprocess.run([sys.executable, "-c", READ, tmp_path], capture_output=True, check=True, timeout=30)
        assert json.loads(other.stdout) == vars(found)
    assert read_wire(tmp_path) is None
    with Counter(wire_path(tmp_path)) as counter:
        assert counter.wire.life != found.life
        assert (counter.wire.up, counter.wire.down) == (0, 0)


def test_what_comes_after_the_client_has_closed_is_counted(tmp_path: Path) -> None:
    """As TLS's last alert does: it was on the link, whether anybody reads it or not."""
    server = socket.create_server(("127.0.0.1", 0))
    with Counter(wire_path(tmp_path)) as counter, MeteringRelay(server.getsockname(), counter) as relay:
        connected(relay).close()
        far, _ = server.accept()
        with far:
            assert far.recv(10) == b""
            far.sendall(b"good-bye" * 10_000)
        deadline = time.monotonic() + 10
        while counter.wire.down < 80_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert counter.wire.down == 80_000
    server.close()


@pytest.mark.skipif(not can_capture(), reason="needs CAP_NET_RAW")
def test_the_count_is_what_packets_carried(tmp_path: Path, echo: Echo) -> None:
    with (
        Capture(echo.port) as capture,
        Counter(wire_path(tmp_path)) as counter,
        MeteringRelay(("127.0.0.1", echo.port), counter) as relay,
    ):
        for size in (10, 50_000, 300_000):
            with connected(relay) as connection:
                talk(connection, bytes(size))
        capture.until(lambda seen: seen.up + seen.down >= 4 * 350_010)
        assert (counter.wire.up, counter.wire.down) == (capture.seen.up, capture.seen.down) == (350_010, 3 * 350_010)


def test_either_end_closes_the_other(tmp_path: Path, echo: Echo) -> None:
    with Counter(wire_path(tmp_path)) as counter, MeteringRelay(("127.0.0.1", echo.port), counter) as relay:
        with connected(relay) as connection:
            talk(connection, b"x")
        assert echo.closed.acquire(timeout=10), "the client's end is passed on"
    once = socket.create_server(("127.0.0.1", 0))
    with Counter(wire_path(tmp_path)) as counter, MeteringRelay(once.getsockname(), counter) as relay:
        with connected(relay) as connection:
            far, _ = once.accept()
            far.sendall(b"bye")
            far.close()
            assert connection.recv(10) == b"bye"
            assert connection.recv(10) == b""
        once.close()
        with connected(relay) as connection:
            assert connection.recv(1) == b"", "nobody is there: as if it were refused"


def test_a_tunnel_leads_to_one_place(tmp_path: Path, echo: Echo) -> None:
    there = ("127.0.0.1", echo.port)
    with Counter(wire_path(tmp_path)) as counter, MeteringRelay(there, counter, tunnel=True) as relay:
        with connected(relay) as connection:
            connection.sendall(b"CONNECT far.example:443 HTTP/1.1\r\nHost: far.example:443\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
            assert talk(connection, b"abc") == b"abc" * 3
        deadline = time.monotonic() + 10
        while counter.wire.up < 3 and time.monotonic() < deadline:  # bytes are counted once they have left
            time.sleep(0.01)
        assert (counter.wire.up, counter.wire.down) == (3, 9), "what stays on this machine is not counted"
        for head in (b"GET / HTTP/1.1\r\n\r\n", b"x" * 20_000):
            with connected(relay) as connection:
                connection.sendall(head)
                assert connection.recv(100).startswith(b"HTTP/1.1 405 ")
        assert counter.wire.up == 3


@pytest.mark.parametrize(
    ("insecure", "proxies", "route"),
    [
        (True, {}, Route(target=("far.example", 8000))),
        (False, {}, Route(target=("far.example", 8000), tunnel=True)),
        (True, {"http": "http://out:3128"}, None),
        (False, {"https": "socks5://out:1080"}, None),
        (False, {"https": "http://me:x@out:3128"}, Route(target=("out", 3128), proxy="http://me:x@out:3128")),
        (False, {"all": "out:3128"}, Route(target=("out", 3128), proxy="http://out:3128")),
        (
            False,
            {"https": "http://out:3128", "no": "localhost, .example"},
            Route(target=("far.example", 8000), tunnel=True, exceptions=("localhost",)),
        ),
        (True, {"http": "http://out:3128", "no": "*"}, Route(target=("far.example", 8000))),
    ],
)
def test_routes(insecure: bool, proxies: dict[str, str], route: Route | None) -> None:
    assert find_route("far.example", 8000, insecure=insecure, proxies=proxies) == route


def test_variables_lead_through_the_relay() -> None:
    assert proxy_variables(Route(target=("a", 1)), "127.0.0.1:5") == {}
    own = proxy_variables(Route(target=("a", 1), tunnel=True, exceptions=("b", "c")), "127.0.0.1:5")
    through = {"https_proxy": "http://127.0.0.1:5", "http_proxy": "", "all_proxy": ""}
    assert own == {**through, "no_proxy": "b,c", "NO_PROXY": "b,c"}
    theirs = proxy_variables(Route(target=("out", 1), proxy="http://me:x@out:1"), "127.0.0.1:5")
    assert theirs["https_proxy"] == "http://me:x@127.0.0.1:5"
    for host in ("::1", "127.0.0.1", "localhost"):
        for proxies in ({}, {"https": "http://out:1"}, {"all": "http://out:1"}):
            assert find_route(host, 9, insecure=False, proxies=proxies) == Route(target=(host, 9), tunnel=True)


def test_a_count_that_has_ended_writes_nowhere(tmp_path: Path) -> None:
    """The number of its file may be another's by then."""
    with Counter(wire_path(tmp_path)) as counter:
        pass
    with (tmp_path / "other").open("wb") as other:
        counter.add(up=5)
    assert (tmp_path / "other").read_bytes() == b""
    assert other.closed
    assert counter.wire.up == 5
    assert read_wire(tmp_path) is None


def test_a_torn_file_is_no_count(tmp_path: Path) -> None:
    assert read_wire(tmp_path) is None
    wire_path(tmp_path).write_bytes(struct.pack("<Q", 1))
    assert read_wire(tmp_path) is None
