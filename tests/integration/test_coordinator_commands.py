"""``fedcompress run`` on a tiny Llama: killed in every way, stopped, resumed; compared with one left alone."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedcompress.demo.processes import free_port, wait_until
from fedcompress.locks import holder
from server.history import read_events
from server.places import COORDINATOR_LOCK, RUN_LOCK
from tests.integration.test_federation import leftovers
from tests.tiny import write_llama, write_rows

ROOT = Path(__file__).parents[2]
SITES = ("north", "south")
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
}


def call(*args: object, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedcompress", *map(str, args)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False)
    assert code is None or done.returncode == code, done.stderr + done.stdout
    return done


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and the initial adapter of a run on it."""
    folder = tmp_path_factory.mktemp("base")
    write_llama(folder / "model")
    adapter = ["--task", "causal-lm", "--adapter", "lora(r=4)", "--out", folder / "initial"]
    call("template", folder / "model", *adapter)
    return folder


class Deployment:
    """A coordinator's and two sites' folders, and their processes."""

    def __init__(self, folder: Path, base: Path, rounds: int) -> None:
        self.folder, self.port = folder, free_port()
        self.state, self.config = folder / "state", folder / "coordinator.toml"
        self.processes: list[subprocess.Popen[bytes]] = []
        folder.mkdir(parents=True)
        for number, name in enumerate(SITES):
            write_rows(folder / f"{name}.jsonl", 48, number)
            model = json.dumps(str(base / "model"))
            (folder / f"{name}.toml").write_text(
                f'[site]\nname = "{name}"\nstate_dir = "{name}"\n\n[model]\npath = {model}\n\n'
                f'[data]\ntrain = "{name}.jsonl"\n\n[engine]\nkind = "accelerate"\n'
            )
        self.config.write_text(
            f'[coordinator]\nstate_dir = "state"\nlisten = "127.0.0.1:{self.port}"\ninsecure = true\n'
            f"first_pause = 0.2\n\n[run]\ninitial-adapter = {json.dumps(str(base / 'initial'))}\n"
            f"rounds = {rounds}\nmin-sites = 2\nquorum = 2\nsteps = 8\nbatch-size = 8\nmax-length = 32\n"
            'codec = "lora-ternary"\ndownlink-codec = "lora-ternary"\nround-timeout = 120.0\n'
        )

    def start(self, *args: object) -> subprocess.Popen[bytes]:
        """A command in a session of its own, that goes on."""
        with (self.folder / "commands.log").open("ab") as log:
            command = [sys.executable, "-m", "fedcompress", *map(str, args)]
            process = subprocess.Popen(
                command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        return process

    def sites_up(self) -> None:
        for name in SITES:
            self.start(
                "site", "up", self.folder / f"{name}.toml", "--superlink", f"127.0.0.1:{self.port}", "--insecure"
            )

    def until(self, ready: Callable[[], object], what: str, command: subprocess.Popen[bytes]) -> None:
        def alive() -> None:
            assert command.poll() is None or ready(), (self.folder / "commands.log").read_text()

        wait_until(lambda: bool(ready()), timeout=300, what=what, alive=alive)

    def asked(self, round_: int) -> bool:
        """Whether a round has been asked for."""
        return any(e["event"] == "asked" and e["round"] == round_ for e in read_events(self.state))

    def superlink(self) -> psutil.Process:
        """The SuperLink itself, not its guard."""
        members = psutil.Process(holder(self.state / RUN_LOCK)).children(recursive=True)
        found = [p for p in members if any(Path(w).name == "flower-superlink" for w in p.cmdline()[:2])]
        assert len(found) == 1
        return found[0]

    def digest(self) -> str:
        return hashlib.sha256((self.state / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(call("status", self.config, "--json").stdout)
        return found

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            process.wait(timeout=60)


@contextmanager
def deployed(folder: Path, base: Path, rounds: int) -> Iterator[Deployment]:
    deployment = Deployment(folder, base, rounds)
    try:
        deployment.sites_up()
        yield deployment
    finally:
        deployment.end()


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of three rounds that nobody disturbed."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    with deployed(folder, base, 3) as it:
        done = it.start("run", it.config, "--json")
        it.until(lambda: done.poll() is not None, "run", done)
        assert done.returncode == 0, (folder / "commands.log").read_text()
    assert leftovers(folder) == []
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_in_every_way_it_ends_with_the_same_bytes(tmp_path: Path, base: Path, plain: Path) -> None:
    """kill -9 of the ServerApp in round 1, of the SuperLink in round 2, of the supervisor in round 3."""
    with deployed(tmp_path / "run", base, 3) as it:
        first = it.start("run", it.config)
        it.until(lambda: it.asked(1), "round 1", first)
        os.kill(killed := holder(it.state / COORDINATOR_LOCK), signal.SIGKILL)
        it.until(lambda: it.asked(2), "round 2", first)
        assert it.status()["coordinator_pid"] not in (None, killed)
        it.superlink().kill()
        it.until(lambda: it.asked(3), "round 3", first)
        link = it.superlink()
        first.kill()
        first.wait()
        psutil.wait_procs([link], timeout=20)
        assert not link.is_running(), "the SuperLink outlived its supervisor"

        lock = it.state / COORDINATOR_LOCK
        wait_until(lambda: not holder(lock), timeout=20, what="end of the coordinator", alive=lambda: None)
        assert it.status()["state"] == "interrupted"
        refused = call("run", it.config, code=2)
        assert "2 of 3 rounds are done: go on with --resume" in refused.stderr
        assert refused.stderr.count("\n") == 1
        second = it.start("run", it.config, "--resume", "--json")
        it.until(lambda: second.poll() is not None, "run", second)
        assert second.returncode == 0, (it.folder / "commands.log").read_text()
        assert it.status()["state"] == "finished"
        again = call("run", it.config)
        assert "is finished: 3 rounds" in again.stderr
    expected = hashlib.sha256((plain / "state" / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert it.digest() == expected
    rounds = json.loads(call("history", it.state, "--json").stdout)["rounds"]
    assert [(r["round"], r["asked"], r["merged"]) for r in rounds] == [(1, 2, 2), (2, 2, 2), (3, 2, 2)]
    assert leftovers(it.folder) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stopped_after_a_round_and_resumed(tmp_path: Path, base: Path, plain: Path) -> None:
    """`stop` lets the round end; `stop --now` does not; neither changes a byte."""
    with deployed(tmp_path / "run", base, 3) as it:
        first = it.start("run", it.config)
        it.until(lambda: it.asked(1), "round 1", first)
        assert "stops after round 1" in call("stop", it.config).stdout
        it.until(lambda: first.poll() is not None, "stop", first)
        assert first.returncode == 0
        found = it.status()
        assert (found["state"], found["rounds_done"], found["stop_requested"]) == ("stopped", 1, False)
        second = it.start("run", it.config, "--resume")
        it.until(lambda: it.asked(2), "round 2", second)
        stopped = json.loads(call("stop", it.state, "--now", "--json").stdout)
        assert (stopped["now"], stopped["killed"]) == (True, False)
        assert second.wait(timeout=30) == 130
        assert call("stop", it.state, code=1).stdout.endswith("it is interrupted\n")
        third = it.start("run", it.config, "--resume")
        it.until(lambda: third.poll() is not None, "run", third)
        assert third.returncode == 0
    assert it.digest() == hashlib.sha256((plain / "state/adapter/adapter_model.safetensors").read_bytes()).hexdigest()
    assert leftovers(it.folder) == []
