"""Fixtures of the tests that run real sites: MiniLM, DeepSpeed ranks, small data."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.site_support import WorkerSite, make_template, write_site


def pytest_configure() -> None:
    """A job in the background of a shell ignores Ctrl-C, and so would the commands that tests interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The initial adapter, made once."""
    folder = tmp_path_factory.mktemp("template") / "initial"
    make_template(folder)
    return folder


@pytest.fixture
def worker_site(tmp_path: Path, template: Path) -> Iterator[WorkerSite]:
    """A site without a running worker; workers that a test starts are ended after it."""
    site = WorkerSite(write_site(tmp_path, "north", rows=48), template)
    yield site
    site.stop()
