"""``fedcompress watch`` on a terminal and without one, and the command around all of it."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fedcompress.errors import ConfigError, MissingPackageError
from server.commands import watch
from server.ledger.reader import Awaited
from server.watch import terminal
from server.watch.view import Snapshot, take_snapshot
from tests.support import ROOT
from tests.unit.server.watch.world import poison

SCRIPT = Path(sys.executable).parent / "fedcompress"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def drawn(shown: Snapshot, width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(terminal.render(shown))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_what_is_shown(finished_run: Path) -> None:
    text = drawn(take_snapshot(finished_run))
    for words in ("run: finished, 4 of 4 rounds", "north", "3/3", "fewer than int8", "accuracy ", "protocol"):
        assert words in text, words


def test_who_is_awaited(finished_run: Path) -> None:
    shown = take_snapshot(finished_run)
    one = Awaited(round=5, node="7", site="", since=shown.at - 65, until=shown.at + 30)
    shown = replace(shown, state="asked", round=5, awaited=(one,), since=one.since, until=one.until, answered=2)
    text = drawn(shown)
    assert "round 5: 2 of 3 have answered" in text
    assert "awaited for 1 min 5 s, for 30 s more: node 7" in text


def test_names_cannot_reach_the_terminal(state: Path) -> None:
    poison(state)
    text = drawn(take_snapshot(state))
    assert "\\x1b[31m" in text
    assert not re.search("\x1b\\[31m|\x00|\u202e", text)


@pytest.mark.parametrize("width", [20, 60, 300])
def test_any_width(finished_run: Path, width: int) -> None:
    assert "north" in drawn(take_snapshot(finished_run), width) or width == 20


def test_a_sparkline() -> None:
    assert terminal.sparkline([]) == ""
    assert terminal.sparkline([2.0, 2.0]) == "▁▁"
    assert terminal.sparkline([float(i) for i in range(100)], 8) == "▁▂▃▄▅▆▇█"


def test_without_a_terminal_rounds_are_followed(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = take_snapshot(finished_run)
    begun = replace(done, state="asked", rounds_done=1)
    looks: Iterator[Snapshot] = iter([begun, replace(begun, state="merging"), replace(begun, rounds_done=2), done])
    slept: list[float] = []
    terminal.show(lambda: next(looks), once=False, sleep=slept.append)
    out = capsys.readouterr().out
    assert [out.count(words) for words in ("1 of 4 rounds", "2 of 4 rounds", "4 of 4 rounds")] == [1, 1, 1]
    assert slept == [terminal.LOOK] * 3


def test_on_a_terminal(finished_run: Path) -> None:
    """A real pseudo-terminal; it ends by itself, since the run has ended."""
    master, slave = pty.openpty()
    with closing(os.fdopen(master, "rb", buffering=0)) as screen:
        command = [SCRIPT, "watch", str(finished_run)]
        with subprocess.Popen(command, stdout=slave, stderr=slave, env={**ENVIRONMENT, "TERM": "xterm"}) as process:
            os.close(slave)
            text = b""
            try:
                while chunk := screen.read(65536):
                    text += chunk
            except OSError:  # Linux says so when the other end is closed
                pass
            assert process.wait(60) == 0
    assert b"4 of 4 rounds are done" in text
    assert b"\x1b[" in text


def test_once_and_json(finished_run: Path) -> None:
    for words in (["--once"], ["--json"]):
        done = subprocess.run(
            [SCRIPT, "watch", str(finished_run), *words], capture_output=True, text=True, check=True, env=ENVIRONMENT
        )
        assert done.stderr == ""
        assert "north" in done.stdout
    assert json.loads(done.stdout)["rounds_done"] == 4


def test_the_web_server_of_the_command(finished_run: Path) -> None:
    command = [SCRIPT, "watch", str(finished_run), "--web", "--json"]
    secret = {**ENVIRONMENT, "FEDCOMPRESS_WATCH_TOKEN": "from-the-environment"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=secret) as process:
        try:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            assert told["token"] is None, "a token that was given is repeated"
            request = urllib.request.Request(
                f"{told['url']}api/snapshot", headers={"Authorization": "Bearer from-the-environment"}
            )
            with urllib.request.urlopen(request, timeout=20) as reply:
                assert json.load(reply)["rounds_done"] == 4
        finally:
            process.send_signal(2)
            assert process.wait(20) == 130


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"web": True, "once": True}, "--web"),
        ({"web": True, "tensorboard": "x"}, "--web"),
        ({"port": 70000}, "--port: 70000"),
        ({"host": ""}, "--host"),
    ],
)
def test_options_that_do_not_fit(words: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        watch.Options(state="x", **words)  # type: ignore[arg-type]


def test_events_for_tensorboard(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Read by TensorBoard itself; written twice, each number is there once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    poison(state)
    shown = take_snapshot(state)
    for _ in range(2):
        options = watch.Options(state=str(state), tensorboard=str(tmp_path / "tb"), once=True, as_json=True)
        assert watch.run(options) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    events = EventAccumulator(str(tmp_path / "tb" / "run"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"quality/accuracy", "quality/loss", "bytes/total", "round/seconds", "sites/north/loss"} <= set(tags)
    assert told["scalars"] == sum(len(events.Scalars(tag)) for tag in tags)
    for tag, expected in (
        ("bytes/up", [(r.round, r.uplink_bytes) for r in shown.history]),
        ("quality/loss", [(0, shown.loss_start), *((r.round, r.loss) for r in shown.history)]),
    ):
        assert [(e.step, e.value) for e in events.Scalars(tag)] == expected
    assert [e.step for e in events.Scalars("sites/west/accuracy")] == [0, 1, 2, 3, 4]
    assert [e.wall_time for e in events.Scalars("bytes/up")] == pytest.approx([r.at for r in shown.history])


def test_tensorboard_follows(state: Path, tmp_path: Path) -> None:
    from server.state_dir import EVENTS
    from server.watch.tensorboard import write_events

    finished = (state / EVENTS).read_text()
    (state / EVENTS).write_text("")
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            (state / EVENTS).write_text(finished)

    count = write_events(state, tmp_path / "tb", once=False, sleep=sleep)
    assert len(slept) == 2
    assert count == write_events(state, tmp_path / "other", once=True)


def test_packages_that_are_absent(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from server.watch.metrics import to_prometheus
    from server.watch.tensorboard import write_events

    for name in ("tensorboardX", "prometheus_client"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=r"fedcompress\[watch\]"):
        write_events(finished_run, tmp_path, once=True)
    with pytest.raises(MissingPackageError, match=r"fedcompress\[watch\]"):
        to_prometheus(take_snapshot(finished_run))
