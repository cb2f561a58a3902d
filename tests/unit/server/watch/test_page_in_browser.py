"""The page as a browser shows it: its text, its charts, its script, and what it does not run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from fedcompress.errors import StateError
from server.watch import serve
from server.watch.view import Snapshot, take_snapshot
from server.watch.web import Looks, WatchServer
from tests.unit.server.watch.world import poison

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OWN = (0x17, 0x64, 0xAB)  # colour of what was measured
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: apt-get install chromium"),
]


def browse(url: str, profile: Path, *options: str) -> str:
    """What a headless browser prints, after the page has had some seconds of its own time."""
    command = [
        str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        "--disable-background-networking", f"--user-data-dir={profile}", "--window-size=1280,1400", *options, url,
    ]  # fmt: skip
    environment = {**os.environ, "DBUS_SESSION_BUS_ADDRESS": "disabled:"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True, env=environment)
    return done.stdout


def test_the_page_is_drawn(finished_run: Path, tmp_path: Path) -> None:
    from PIL import Image

    picture = tmp_path / "page.png"
    with serve(finished_run) as server:
        browse(server.url, tmp_path / "profile", f"--screenshot={picture}")
    with Image.open(picture) as image:
        pixels = image.convert("RGB")
    assert pixels.size == (1280, 1400)
    colours = pixels.getcolors(1 << 20)
    assert colours is not None
    counts = {colour: count for count, colour in colours}
    assert len(counts) > 50, "the page is blank"
    assert counts.get(OWN, 0) > 300, "no line and no points are drawn in the charts"


def test_text_and_charts_are_in_the_document(finished_run: Path, tmp_path: Path) -> None:
    with serve(finished_run) as server:
        document = browse(server.url, tmp_path / "profile", "--dump-dom", "--virtual-time-budget=500")
    assert "<title>run: finished</title>" in document
    for words in ("north", "south", "west", "4 of 4 rounds are done", "fewer bytes than bf16", "Refused (0)"):
        assert words in document, words
    assert document.count("<svg") == 3
    assert document.count("<circle") >= 4 + 3 + 5 + 8  # accuracy, baselines, loss with its start, both ways


def test_the_page_follows_the_run(state: Path, tmp_path: Path) -> None:
    """Its script takes over what changed; without that, the title would stay that of the first look."""
    looked: list[str] = []

    class Changing(Looks):
        def __call__(self) -> Snapshot:
            looked.append("look")
            shown = take_snapshot(state)
            return shown if len(looked) == 1 else replace(shown, run="changed")

    with WatchServer(Changing(lambda: take_snapshot(state)), "127.0.0.1", 0, "", ()) as server:
        document = browse(server.url, tmp_path / "profile", "--dump-dom", "--virtual-time-budget=5000")
    assert len(looked) >= 2
    assert "<title>changed: finished</title>" in document
    assert "fedcompress: changed" in document
    assert 'class="lost"' not in document


def test_a_lost_server_is_said(finished_run: Path, tmp_path: Path) -> None:
    answers = iter([True])

    class Once(Looks):
        def __call__(self) -> object:  # type: ignore[override]
            if not next(answers, False):
                raise StateError("ledger: cannot be read")
            return super().__call__()

    with WatchServer(Once(lambda: take_snapshot(finished_run)), "127.0.0.1", 0, "", ()) as server:
        document = browse(server.url, tmp_path / "profile", "--dump-dom", "--virtual-time-budget=5000")
    assert re.search('<body[^>]*class="lost"', document)
    assert "north" in document, "what was shown has gone"


def test_hostile_names_run_nothing(state: Path, tmp_path: Path) -> None:
    poison(state)
    with serve(state, token="a-token-of-some-length") as server:
        url = f"{server.url}?token=a-token-of-some-length"
        document = browse(url, tmp_path / "profile", "--dump-dom", "--virtual-time-budget=5000")
    assert "<title>run: finished</title>" in document
    assert "&lt;script&gt;document.title='owned'&lt;/script&gt;" in document
    assert document.count("<script") == 1
    assert "<img" not in document
