"""A finished run to watch, made once and copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.unit.server.watch.world import finished


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State directory that is only read."""
    return finished(tmp_path_factory.mktemp("watched"))


@pytest.fixture
def state(finished_run: Path, tmp_path: Path) -> Path:
    """State directory that a test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "state"))
