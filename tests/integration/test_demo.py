"""``fedcompress demo`` as it is by default, cut short: TLS and node keys, and all bytes are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest

from fedcompress.demo.run import DemoOptions, run_demo
from server.ledger.reader import LedgerReader
from tests.deployment import words_of
from tests.integration.test_federation import leftovers


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demo_is_encrypted_and_counted(tmp_path: Path) -> None:
    found: list[list[str]] = []

    def look(event: dict[str, Any]) -> None:
        if event["event"] == "asked" and not found:
            lines = [words_of(process) for process in psutil.Process().children()]
            found.extend(line for line in lines if str(tmp_path) in str(line))

    result = run_demo(DemoOptions(out=tmp_path / "out", sites=1, rounds=1, steps=1), look)
    assert not any("--insecure" in line for line in found)
    assert sum("--enable-supernode-auth" in line for line in found) == 1
    assert sum("--auth-supernode-private-key" in line for line in found) == 1
    assert result["payload_bytes"]["up"] > 0
    with LedgerReader(tmp_path / "out" / "work" / "coordinator") as history:
        carried = history.transport_bytes("demo")
    assert min(carried["up"] or 0, carried["down"] or 0) > 10_000
    assert leftovers(tmp_path) == []
