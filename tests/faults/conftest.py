"""Where a fault test leaves what it counted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def record_chaos() -> Path | None:
    """A folder for counts, if FEDCOMPRESS_CHAOS_OUT names one."""
    named = os.environ.get("FEDCOMPRESS_CHAOS_OUT")
    if not named:
        return None
    Path(named).mkdir(parents=True, exist_ok=True)
    return Path(named)
