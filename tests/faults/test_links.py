"""Slow, far and lossy links between sites and SuperLink."""

from __future__ import annotations

import socket
import threading
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from fedcompress.demo.federation import Federation
from tests.faults.links import Link, ShapedProxy
from tests.faults.record import record
from tests.site_support import run_federation

RATES, DELAYS, LOSSES = (0.25, 1.0, 10.0, 100.0), (0.0, 0.1, 0.3), (0.0, 0.01, 0.02)


@pytest.mark.parametrize(
    ("link", "size", "least"),
    [(Link(8, 0.0), 500_000, 0.5), (Link(100, 0.2), 1000, 0.2), (Link(100, 0.0, 0.5), 100_000, 0.2)],
    ids=["rate", "latency", "loss"],
)
def test_the_link_is_as_slow_as_it_says(link: Link, size: int, least: float) -> None:
    """An echo through it takes at least what rate, round trip or a retransmission cost."""
    server, proxy = socket.create_server(("127.0.0.1", 0)), ShapedProxy(link)

    def echo() -> None:
        connection, _ = server.accept()
        with connection:
            left = size
            while left:
                left -= len(connection.recv(min(left, 1 << 16)))
            connection.sendall(b"x")

    thread = threading.Thread(target=echo)
    thread.start()
    host, port = proxy.to(f"127.0.0.1:{server.getsockname()[1]}").split(":")
    try:
        with socket.create_connection((host, int(port))) as connection:
            started = time.monotonic()
            connection.sendall(bytes(size))
            assert connection.recv(1) == b"x"
            taken = time.monotonic() - started
    finally:
        thread.join()
        proxy.close()
        server.close()
    assert least <= taken < least + 5
    assert proxy.carried == {"up": size, "down": 1}


@pytest.mark.chaos
@pytest.mark.timeout(2400)
def test_no_update_is_lost_on_any_link(tmp_path: Path, template: Path) -> None:
    """One federation, another link in every round: each round merges both sites, and the digests agree."""
    links = [Link(*parts) for parts in product(RATES, DELAYS, LOSSES)]
    proxies: list[ShapedProxy] = []
    taken: dict[Link, float] = {}

    def through(address: str) -> str:
        proxies.append(ShapedProxy(links[0], seed=len(proxies)))
        return proxies[-1].to(address)

    def next_link(federation: Federation, event: dict[str, Any]) -> None:
        if event["event"] == "round":
            taken[links[event["round"] - 1]] = event["seconds"]
            for proxy in proxies:
                proxy.link = links[min(event["round"], len(links) - 1)]

    codecs = {"codec": "none", "downlink-codec": "none"}  # large messages for so small an adapter
    try:
        events = run_federation(
            tmp_path, template, rounds=len(links), via=through, on_event=next_link, timeout=2300, **codecs
        )
    finally:
        for proxy in proxies:
            proxy.close()
    merged = [e["merged"] for e in events if e["event"] == "round"]
    assert merged == [2] * len(links)
    assert not [e for e in events if e["event"] == "refused"]
    for link, seconds in taken.items():
        name = f"{link.mbit:g} Mbit/s, {1000 * link.rtt:.0f} ms, {100 * link.loss:.0f} % loss"
        record("link", name, 2, f"round of {seconds:.1f} s, nothing lost")
