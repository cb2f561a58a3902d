"""A ledger of a run that has begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.ledger.ledger import Ledger
from tests.unit.server.samples import LAYOUT


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path, "run")
    ledger.begin(LAYOUT, "{}", "")
    return ledger
