"""The table of attacks: each names tests that exist, and ``make chaos`` runs them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.attacks import ATTACKS
from tests.faults.record import record

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("attack", ATTACKS)
def test_each_attack_has_its_tests(attack: str) -> None:
    for name in ATTACKS[attack]:
        path, _, test = name.partition("::")
        text = (ROOT / path).read_text()
        assert f"def {test.partition('[')[0]}(" in text or not test, name


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("attack", ATTACKS)
def test_attack(attack: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-rN", *ATTACKS[attack]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    passed = int(done.stdout.split(" passed")[0].split()[-1])
    assert passed >= 1
    gaps = re.search(r"(\d+) xfailed", done.stdout)
    record("attack", attack, passed, f"refused, but for {gaps[1]} known gaps" if gaps else "refused")
