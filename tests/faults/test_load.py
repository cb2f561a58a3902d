"""Many sites, many rounds, large adapters: time, memory and files of the coordinator. Sites replay recorded steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.record import record

MIB = 1 << 20


def load(folder: Path, **settings: Any) -> dict[str, Any]:
    """A run in a process of its own."""
    fields = {"sites": 3, "rounds": 2, "width": 64, "modules": 2, "drop": 0.0, "codec": "lora-ternary"}
    fields |= {"downlink_codec": "lora-ternary", **settings}
    command = [sys.executable, "-m", "tests.faults.load", str(folder), json.dumps(fields)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_sixty_four_sites(tmp_path: Path) -> None:
    found = load(tmp_path, sites=64, rounds=3)
    assert found["merged"] == [64] * 3


def test_half_of_the_sites_drop_out_of_each_round(tmp_path: Path) -> None:
    """Each round closes by its deadline, on the coordinator's clock, with those that are there."""
    found = load(tmp_path, sites=20, rounds=4, drop=0.5, round_timeout=30.0, quorum=3)
    assert len(found["merged"]) == 4
    assert all(3 <= merged < 20 for merged in found["merged"])


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_a_thousand_sites(tmp_path: Path) -> None:
    found = load(tmp_path, sites=1000, rounds=50)
    assert found["merged"] == [1000] * 50
    files = [files for _, _, files in found["seen"]]
    assert max(files) - min(files) <= 8
    note = f"{found['seconds']:.0f} s, peak {(found['peak'] - found['before']) / MIB:.0f} MiB above the start"
    record("load", "1,000 simulated sites x 50 rounds", 50_000, note)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_five_thousand_rounds(tmp_path: Path) -> None:
    """Memory and open files are flat from the thousandth round on."""
    found = load(tmp_path, rounds=5000, codec="ternary", downlink_codec="ternary")
    tail = [(memory, files) for round_, memory, files in found["seen"] if round_ >= 1000]
    grown = max(m for m, _ in tail) - tail[0][0]
    assert len({files for _, files in tail}) <= 3
    assert grown < 16 * MIB
    record("load", "5,000 tiny rounds", 5000, f"{found['seconds']:.0f} s, {grown / MIB:.1f} MiB more after round 1,000")
