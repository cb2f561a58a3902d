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
    """A run in a process of its own; what sites send is made in another."""
    fields = {"sites": 3, "rounds": 2, "drop": 0.0, "codec": "lora-ternary", "downlink_codec": "lora-ternary"}
    shape = {"width": settings.pop("width", 64), "modules": settings.pop("modules", 2)}
    fields |= settings
    call("prepare", folder, {**shape, "codec": fields["codec"]})
    found: dict[str, Any] = call("run", folder, fields)
    return found


def call(what: str, folder: Path, fields: dict[str, Any]) -> Any:
    command = [sys.executable, "-m", "tests.faults.load", what, str(folder), json.dumps(fields)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("modules", [256, 1024], ids=["16 MiB", "64 MiB"])
def test_memory_is_bounded_by_the_adapter(tmp_path: Path, modules: int) -> None:
    """At most twice the adapter and 64 MiB above the start, whatever the number of sites."""
    peaks = {}
    for sites in (2, 12):
        folder = tmp_path / str(sites)
        folder.mkdir()
        found = load(folder, width=2048, modules=modules, sites=sites)
        peaks[sites] = found["peak"] - found["before"]
        assert peaks[sites] <= 2 * found["adapter"] + 64 * MIB
    note = ", ".join(f"{sites} sites: {peak / MIB:.0f} MiB" for sites, peak in peaks.items())
    record("load", f"adapter of {found['adapter'] / MIB:.0f} MiB, rule mean", 28, f"peak above the start: {note}")
