"""Slow, far and lossy links between sites and SuperLink."""

from __future__ import annotations

import socket
import threading
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from clients.network.link_speed import Link as SiteLink
from fedcompress.demo.federation import Federation
from tests.faults.links import Link, ShapedProxy
from tests.faults.record import record
from tests.site_support import make_template, run_federation

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


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mbit", [0.25, 0.0], ids=["known", "unknown"])
def test_a_large_update_arrives_over_a_slow_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mbit: float) -> None:
    """5.9 MB at 0.25 Mbit/s, where Flower's own chunks do not arrive; next to nothing goes over the link twice."""
    make_template(tmp_path / "initial", 160)
    for name, value in SiteLink(mbit=mbit).environment().items():
        monkeypatch.setenv(name, value)
    proxy = ShapedProxy(Link(0.25))
    settings = {"codec": "none", "downlink-codec": "lora-ternary", "round-timeout": 800.0, "patience": 0}
    try:
        events = run_federation(tmp_path / "run", tmp_path / "initial", sites=1, via=proxy.to, timeout=850, **settings)
    finally:
        proxy.close()
    by_name = {e["event"]: e for e in events}
    payload = by_name["finished"]["up"]["payload_bytes"]
    assert by_name["round"]["merged"] == 1
    assert payload > 5_900_000
    assert proxy.carried["up"] < 1.1 * payload
    name = f"{payload:,} bytes at 0.25 Mbit/s, " + (f"said to be {mbit:g}" if mbit else "not known")
    record("link", name, 1, f"round of {by_name['round']['seconds']:.0f} s, {proxy.carried['up']:,} bytes went up")
