"""A coordinator and two sites by their commands, on a tiny Llama."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from fedcompress.demo.processes import free_port, wait_until
from fedcompress.locks import holder
from server.history import read_events
from server.places import RUN_LOCK
from tests.tiny import write_llama, write_rows

ROOT = Path(__file__).parents[1]
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


def write_base(folder: Path) -> Path:
    """A model, and the initial adapter of a run on it."""
    write_llama(folder / "model")
    adapter = ["--task", "causal-lm", "--adapter", "lora(r=4)", "--out", folder / "initial"]
    call("template", folder / "model", *adapter)
    return folder


class Deployment:
    """A coordinator's and two sites' folders, and their processes."""

    def __init__(self, folder: Path, base: Path, rounds: int, at_sites: Mapping[str, str]) -> None:
        self.at_sites = {**ENVIRONMENT, **at_sites}
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
            'codec = "lora-ternary"\ndownlink-codec = "lora-ternary"\n'
            "require-signatures = false\nround-timeout = 120.0\n"
        )

    def start(self, *args: object, environment: Mapping[str, str] = ENVIRONMENT) -> subprocess.Popen[bytes]:
        """A command in a session of its own, that goes on."""
        with (self.folder / "commands.log").open("ab") as log:
            command = [sys.executable, "-m", "fedcompress", *map(str, args)]
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        return process

    def sites_up(self) -> None:
        for name in SITES:
            link = ["--superlink", f"127.0.0.1:{self.port}", "--insecure"]
            self.start("site", "up", self.folder / f"{name}.toml", *link, environment=self.at_sites)

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
def deployed(folder: Path, base: Path, rounds: int, at_sites: Mapping[str, str] | None = None) -> Iterator[Deployment]:
    """Sites are up, with some variables more; all is ended at the end."""
    deployment = Deployment(folder, base, rounds, at_sites or {})
    try:
        deployment.sites_up()
        yield deployment
    finally:
        deployment.end()
