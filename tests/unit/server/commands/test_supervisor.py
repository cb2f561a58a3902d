"""The supervisor over stand-ins: what it starts again, when it gives up, what it leaves behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedcompress.errors import LockedError
from fedcompress.runtime.process_group import ProcessGroup, free_port, wait_until
from fedcompress.storage.locks import hold
from server.commands import supervisor as module
from server.commands.supervisor import CoordinatorSupervisor
from server.ledger.reader import read_events
from server.settings import Settings, load_settings
from server.state_dir import COORDINATOR_LOCK, EVENTS
from tests.support import ROOT

LINK = """
import socket, sys, time
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
time.sleep(300)
"""
# Stands for `flwr run` and the ServerApp: holds the lock, writes the events of its turn, and ends as that says.
APP = """
import json, os, pathlib, signal, sys, time
from fedcompress.storage.locks import hold
state, plan = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
turns = state / "turns"
turn = len(turns.read_text()) if turns.exists() else 0
turns.write_text("x" * (turn + 1))
*events, end = plan[min(turn, len(plan) - 1)]
if end == "silent":
    raise SystemExit(3)
with hold(state / "coordinator.lock", "held by"):
    with (state / "events.jsonl").open("a") as stream:
        for name in events:
            stream.write(json.dumps({"run": "other", "at": 1.0, "event": "finished"}) + "\\n")
            stream.write(json.dumps({"run": "run", "at": 1.0, "event": name, "message": "bad", "adapter": "a"}) + "\\n")
        stream.flush()
    if end == "kill link":
        os.kill(int((state / "link.pid").read_text()), signal.SIGKILL)
        time.sleep(300)
    if end == "stay":
        time.sleep(300)
    while end == "wait" and not (state / "go").exists():
        time.sleep(0.05)
    if end in ("final", "wait"):
        with (state / "events.jsonl").open("a") as stream:
            stream.write(json.dumps({"run": "run", "event": "failed", "message": "wrong", "final": True}) + "\\n")
    time.sleep(0.5)
"""


class Kept:
    """A supervisor whose SuperLink and app are stand-ins that follow a plan, a list for each submission."""

    def __init__(self, folder: Path, plan: list[list[str]], monkeypatch: pytest.MonkeyPatch, **more: object) -> None:
        self.port = free_port()
        keys: dict[str, object] = {"state_dir": "state", "listen": f"127.0.0.1:{self.port}", "insecure": True}
        keys |= {"first_pause": 0.01, "restarts": 2, "start_timeout": 20, **more}
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        (folder / "c.toml").write_text(f'[coordinator]\n{lines}[run]\ninitial-adapter = "i"\n')
        self.settings: Settings = load_settings(folder / "c.toml")
        self.state = self.settings.coordinator.state_path
        self.state.mkdir()
        link = f"import os, pathlib; pathlib.Path({str(self.state / 'link.pid')!r}).write_text(str(os.getpid())){LINK}"
        guard = [sys.executable, "-m", "server.commands.guard", str(os.getpid())]
        monkeypatch.setattr(
            module, "superlink_command", lambda config: [*guard, sys.executable, "-c", link, str(self.port)]
        )
        app = [sys.executable, "-c", APP, str(self.state), json.dumps(plan)]
        monkeypatch.setattr(module, "submit_command", lambda settings: app)
        self.said: list[str] = []
        self.events: list[str] = []
        self.stop = False
        self.group = ProcessGroup(self.state / "logs", {"PYTHONPATH": str(ROOT)})
        self.supervisor = CoordinatorSupervisor(
            settings=self.settings,
            group=self.group.__enter__(),
            on_event=self.on_event,
            say=self.said.append,
            stopped=lambda: self.stop,
        )

    def on_event(self, event: dict[str, Any]) -> None:
        self.events.append(event["event"])
        self.stop = event["event"] == "please stop"

    def turns(self) -> int:
        return len((self.state / "turns").read_text())


Make = Callable[..., Kept]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    made: list[Kept] = []

    def build(*plan: list[str], **more: object) -> Kept:
        made.append(Kept(tmp_path, list(plan), monkeypatch, **more))
        return made[-1]

    yield build
    for kept in made:
        kept.group.stop()
        assert not (kept.state / "link.pid").exists() or not psutil.pid_exists(
            int((kept.state / "link.pid").read_text())
        )


def test_a_run_that_finishes(make: Make) -> None:
    it = make(["start", "round", "finished", "end"])
    outcome = it.supervisor.run()
    assert (outcome.kind, it.supervisor.restarts) == ("finished", 0)
    assert it.events == ["start", "round", "finished"], "events of another run are not ours"


def test_it_says_how_a_supernode_is_registered_while_none_is(make: Make, tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text("")
    it = make(["start", "die"], ["finished", "end"], insecure=False, ca="ca", certificate="cert", key="key")
    assert it.supervisor.run().kind == "finished"
    command = f"FLWR_HOME={it.state / 'flower'} flwr supernode register NAME.node.pub fedcompress"
    assert sum(command in line for line in it.said) == 2, "once for each attempt"


def test_without_keys_nothing_is_said_of_them(make: Make) -> None:
    it = make(["finished", "end"])
    it.supervisor.run()
    assert not any("registered" in line for line in it.said)


def test_a_coordinator_that_dies_is_submitted_again(make: Make) -> None:
    it = make(["start", "die"], ["start", "finished", "end"])
    assert it.supervisor.run().kind == "finished"
    assert (it.supervisor.restarts, it.turns()) == (1, 2)
    assert sum(line.startswith("superlink: started") for line in it.said) == 1, "the SuperLink was well"
    assert any("ended before the run did: again in 0.01 s (1 of 2)" in line for line in it.said)


def test_a_superlink_that_dies_is_started_again(make: Make) -> None:
    """Its coordinator, which goes on, is ended first: two must not write."""
    it = make(["start", "kill link"], ["start", "finished", "end"])
    assert it.supervisor.run().kind == "finished"
    assert sum(line.startswith("superlink: started") for line in it.said) == 2
    assert any("superlink: ended with exit code 137" in line for line in it.said)


def test_it_gives_up_after_so_many_restarts_without_a_round(make: Make) -> None:
    it = make(["start", "die"])
    outcome = it.supervisor.run()
    assert outcome.kind == "failed"
    assert "given up after 2 restarts without a committed round" in outcome.text
    assert it.turns() == 3


def test_a_full_disk_is_waited_for(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be room again at the next attempt; what was started and could not be noted is not started twice."""
    it = make(["finished", "end"])
    write, full = Path.write_text, [True, True]

    def narrow(path: Path, *args: Any, **options: Any) -> int:
        if path.name.startswith("processes.json") and full:
            full.pop()
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, *args, **options)

    monkeypatch.setattr(Path, "write_text", narrow)
    assert it.supervisor.run().kind == "finished"
    assert sum("processes.json: no space left: free some" in line for line in it.said) == 2
    assert sum(line.startswith("superlink: ended") for line in it.said) == 0


def test_a_committed_round_begins_the_count_anew(make: Make) -> None:
    it = make(["start", "die"], ["start", "die"], ["round", "die"], ["start", "die"], ["finished", "end"])
    assert it.supervisor.run().kind == "finished"
    assert it.supervisor.restarts == 4


def test_what_cannot_be_healed_is_not_tried_again(make: Make) -> None:
    it = make(["start", "final"])
    outcome = it.supervisor.run()
    assert (outcome.kind, outcome.text, it.turns()) == ("failed", "wrong", 1)


def test_a_failure_is_tried_again(make: Make) -> None:
    it = make(["start", "failed", "end"], ["stopped", "end"])
    assert it.supervisor.run().kind == "stopped"
    assert it.supervisor.restarts == 1


def test_an_app_that_never_comes(make: Make) -> None:
    it = make(["silent"], restarts=0)
    outcome = it.supervisor.run()
    assert outcome.kind == "failed"
    assert "submission: ended with exit code 3: no output" in outcome.text


def test_a_signal_ends_it_within_a_moment(make: Make) -> None:
    it = make(["start", "please stop", "stay"])
    outcome = it.supervisor.run()
    assert outcome.kind == "interrupted"
    pid = int((it.state / COORDINATOR_LOCK).read_text())
    it.supervisor.end(outcome)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_coordinator_of_anothers_superlink_is_watched(make: Make) -> None:
    it = make(["start", "wait"], superlink="127.0.0.1:1")
    app = module.submit_command(it.settings)
    process = subprocess.Popen([str(w) for w in app], env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        lock = it.state / COORDINATOR_LOCK
        wait_until(lambda: bool(read_events(it.state)), timeout=20, what="app", alive=lambda: None)
        pid = module.holder(lock)
        it.supervisor.say = lambda line: (it.said.append(line), (it.state / "go").touch())
        assert it.supervisor.run().text == "wrong"
        assert it.said == [f"coordinator: pid {pid} runs already: it is watched"]
        assert it.turns() == 1, "nothing was submitted"
    finally:
        process.wait(timeout=20)


def test_a_coordinator_of_another_run_is_left_alone(make: Make) -> None:
    it = make(["start", "end"], superlink="127.0.0.1:1")
    (it.state / EVENTS).write_text('{"run": "other", "event": "start"}\n')
    with hold(it.state / COORDINATOR_LOCK, "held"), pytest.raises(LockedError, match="of another run"):
        it.supervisor.run()


def test_the_guard_ends_its_command_with_its_owner(tmp_path: Path) -> None:
    """kill -9 of the owner: the guard's command, and what that has started, end by themselves."""
    child = f"import subprocess, sys, os; subprocess.Popen([sys.executable, '-c', {LINK!r}, sys.argv[1]]).wait()"
    port = free_port()
    owner_code = (
        "import subprocess, sys, os, time\n"
        "guard = [sys.executable, '-m', 'server.commands.guard', str(os.getpid())]\n"
        f"subprocess.Popen([*guard, sys.executable, '-c', {child!r}, '{port}'], start_new_session=True)\n"
        "time.sleep(300)"
    )
    owner = subprocess.Popen([sys.executable, "-c", owner_code], cwd=ROOT)

    def alive() -> None:
        assert owner.poll() is None

    members: list[psutil.Process] = []
    try:
        wait_until(lambda: module.listening(port), timeout=30, what="listener", alive=alive)
        members = psutil.Process(owner.pid).children(recursive=True)
        assert len(members) == 3
        owner.kill()
        owner.wait()
        _, left = psutil.wait_procs(members, timeout=15)
        assert not left
    finally:
        for process in (*members, psutil.Process()) if members else ():
            if process.pid != os.getpid() and process.is_running():
                process.kill()
        if owner.poll() is None:
            os.kill(owner.pid, signal.SIGKILL)
            owner.wait()
