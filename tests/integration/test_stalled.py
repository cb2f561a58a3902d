"""An upload that does not get on: the round of the others closes by its deadline, through real Flower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedcompress.demo.federation import Federation
from tests.faults.links import Link, ShapedProxy
from tests.site_support import run_federation

DEADLINE = 30.0  # seconds
STALLED = Link(0.01)  # an update of 300 KB takes four minutes


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_stalled_upload_holds_up_nobody(tmp_path: Path, template: Path) -> None:
    """The link of a site all but ends while it sends in round 2, and breaks; then it takes part again."""
    proxies: list[ShapedProxy] = []

    def through(address: str) -> str:
        proxies.append(ShapedProxy(Link(100.0), seed=len(proxies)))
        return proxies[-1].to(address)

    def slow_down(federation: Federation, event: dict[str, Any]) -> None:
        if event["event"] == "asked" and event["round"] == 2:
            proxies[1].link = STALLED
        elif event["event"] == "round" and event["round"] == 2:
            proxies[1].link = Link(100.0)
            proxies[1].cut()

    settings = {"codec": "none", "downlink-codec": "lora-ternary", "quorum": 1, "round-timeout": DEADLINE}
    try:
        events = run_federation(tmp_path, template, rounds=4, via=through, on_event=slow_down, timeout=280, **settings)
    finally:
        for proxy in proxies:
            proxy.close()
    rounds = {e["round"]: e for e in events if e["event"] == "round"}
    # it may still be at work on the second when the third begins
    assert [rounds[n]["merged"] for n in (1, 2, 4)] == [2, 1, 2]
    assert DEADLINE <= rounds[2]["seconds"] < DEADLINE + 10
    refused = [(e["round"], e["site"], e["code"]) for e in events if e["event"] == "refused"]
    assert refused == [(2, "site-1", "deadline")]
