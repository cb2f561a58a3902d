"""What a supervisor that was killed has left is ended, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fedcompress.runtime.supervision import end_noted, end_process, read_facts, reason, remember, stop_signals

SLEEP = [sys.executable, "-c", "import time; time.sleep(100)"]
# A session leader with a child; says the child's id.
LEADER = (
    f"import subprocess, sys, time\nchild = subprocess.Popen({SLEEP!r})\nprint(child.pid, flush=True)\ntime.sleep(100)"
)


def test_the_session_of_a_leader_that_is_gone_is_ended(tmp_path: Path) -> None:
    """As if `run` and the guard of its SuperLink were killed at once."""
    leader = subprocess.Popen([sys.executable, "-c", LEADER], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert leader.stdout is not None
    child = psutil.Process(int(leader.stdout.readline()))
    stranger = subprocess.Popen(SLEEP)
    try:
        remember(tmp_path / "facts.json", "superlink", leader.pid)
        leader.kill()
        leader.wait()
        assert child.is_running()
        assert end_noted(tmp_path / "facts.json") == [f"superlink (pid {leader.pid})"]
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
        assert stranger.poll() is None
        assert end_noted(tmp_path / "facts.json") == []
    finally:
        leader.stdout.close()
        stranger.kill()
        stranger.wait()
        if child.is_running():
            child.kill()


@pytest.mark.parametrize("text", ["", "[1]", "{torn", '{"a": 1, "b": {"pid": "x", "created": 1}, "by": 3}'])
def test_facts_that_are_torn_end_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "facts.json"
    path.write_text(text)
    assert end_noted(path) == []
    assert not path.exists()


def test_facts_without_a_time_of_birth_end_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(SLEEP)
    try:
        path = tmp_path / "facts.json"
        path.write_text(json.dumps({"x": {"pid": process.pid, "created": 0}}))
        assert end_noted(path) == []
        assert process.poll() is None
        remember(path, "y", process.pid)
        assert set(read_facts(path)) == {"by", "y"}
        assert end_process(process.pid, grace=20), "a zombie has ended"
    finally:
        process.kill()
        process.wait()


def test_signals_are_noted_and_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals() as stopped:
        assert not stopped()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped()
    assert signal.getsignal(signal.SIGTERM) is before


BOXES = {
    "╭─ Error ─╮\n│ Connection to the SuperLink │\n│ is unavailable.             │\n╰─────────╯\n": (
        "Connection to the SuperLink is unavailable."
    ),
    "Loading\n┏━━━━┓\n┃ no ┃\n┗━━━━┛\n": "no",
    "one\n╭──╮\n│  │\n╰──╯\n": "one",
    "╭──╮\n│ torn │\n": "torn",
    "ERROR : real\n╭──╮\n│ later │\n╰──╯\n": "ERROR : real",
}


@pytest.mark.parametrize("text", BOXES)
def test_the_reason_is_the_text_in_a_box(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.log").write_text(text)
    assert reason(tmp_path / "a.log", 0) == BOXES[text]


@pytest.mark.parametrize(
    "detail",
    ["[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "[code: 2004] Failed to activate SuperNode."],
)
def test_the_detail_of_an_exit_is_quoted(tmp_path: Path, detail: str) -> None:
    """Flower's line after the reason says what it was."""
    head = "ERROR :     Exit Code: 305\nFailed to initialize the connection to the SuperLink.\n"
    (tmp_path / "a.log").write_text(f"{head}{detail}\nThe SuperNode could not establish a connection.\n")
    assert reason(tmp_path / "a.log", 0) == f"Failed to initialize the connection to the SuperLink. {detail}"
