"""A disk that is full at every place: the error names file and remedy, and with room again the bytes are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedcompress.storage.failpoints import FAILPOINTS
from tests.faults.full import BEGUN
from tests.faults.record import record
from tests.unit.server.memory import World

PRIVATE = ["unshare", "--mount", "--propagation", "private"]
LEFT = (0, 1, 2, 4)  # pages: the less, the earlier it fails
# Hits of a place until the run is well under way; blobs of version 0 come first.
TIMES = {"server.blob": (1, 5, 6), "site.blob": (1, 8, 9), "server.admitted": (5,), "server.asked": (1, 5)}

OFTEN = ("server.blob", "server.before-commit", "site.blob")  # the others are slow


def can_mount(folder: Path) -> bool:
    command = [*PRIVATE, "mount", "-t", "tmpfs", "none", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def filled(folder: Path, cases: list[str]) -> list[dict[str, Any]]:
    if not can_mount(folder):
        pytest.skip("a disk of its own needs the right to mount one (root, or user namespaces)")
    command = [*PRIVATE, sys.executable, "-m", "tests.faults.full", str(folder), *cases]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The adapter of a run that always had room, in hex."""
    world = World(tmp_path_factory.mktemp("calm"))
    world.run()
    return world.result().hex()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "place",
    [
        pytest.param(place, marks=[] if place in OFTEN else pytest.mark.slow)
        for place in FAILPOINTS
        if place != "site.reply"
    ],
)
def test_full_at(place: str, tmp_path: Path, calm: str) -> None:
    errors = 0
    times = TIMES.get(place, (1 if place == "server.before-export" else 2,))
    for found in filled(tmp_path, [f"{place}:{number}:{pages}" for number in times for pages in LEFT]):
        assert found["fills"] == 1, "the place was not reached"
        for error in found["errors"] + found["said"]:
            assert error.startswith(f"disk: {tmp_path}/"), error
            assert "free some" in error
        assert found["adapter"] == calm
        assert found["audit"] == ""
        assert found["damaged"] == []
        assert found["parts"] == []
        errors += bool(found["errors"] or found["said"])
    assert errors, "there was always room"
    record("disk", f"full: {FAILPOINTS[place]}", errors, "same adapter as a run that had room")


def test_begun_on_a_full_disk(tmp_path: Path, calm: str) -> None:
    """SQLite has no room for its own files: no reason to take the ledger for damaged, and put a copy in its place."""
    (found,) = filled(tmp_path, [f"{BEGUN}:0"])
    assert "ledger.db: no space left" in found["errors"][0]
    assert (found["damaged"], found["adapter"], found["audit"]) == ([], calm, "")
