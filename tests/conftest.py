"""Fixtures of the tests that run real sites: MiniLM, DeepSpeed ranks, small data."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.site_support import WorkerSite, make_template, write_site


def pytest_configure() -> None:
    """A job in the background of a shell ignores Ctrl-C, and so would the commands that tests interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    hypothesis.settings.register_profile("slow machine", deadline=None)  # pytest's timeout is the deadline
    hypothesis.settings.load_profile("slow machine")


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


class _Dated(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(404)  # with a Date
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        return None


@pytest.fixture
def dated_host() -> Iterator[str]:
    """HOST:PORT of a server that tells the time, as one before a SuperLink does."""
    server = HTTPServer(("127.0.0.1", 0), _Dated)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(timeout=5)
