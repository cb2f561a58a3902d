"""A coordinator and its sites by their commands: two on a tiny Llama, or those of the demo."""

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

from fedcompress.runtime.process_group import free_port, wait_until
from fedcompress.storage.locks import holder
from server.ledger.reader import read_events
from server.state_dir import RUN_LOCK
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


def words_of(process: psutil.Process) -> list[str]:
    """Its command; none if it has just ended."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


class Deployment:
    """A coordinator's and its sites' folders, and their processes."""

    patience = 300.0  # seconds for what is waited for

    def __init__(self, folder: Path, base: Path, rounds: int, at_sites: Mapping[str, str]) -> None:
        self.at_sites = {**ENVIRONMENT, **at_sites}
        self.folder, self.port = folder, free_port()
        self.state, self.config = folder / "state", folder / "coordinator.toml"
        self.processes: list[subprocess.Popen[bytes]] = []
        folder.mkdir(parents=True)
        self.files = self.write_sites(base)
        run = {"initial-adapter": str(base / "initial"), "rounds": rounds, **self.settings()}
        self.config.write_text(
            f'[coordinator]\nstate_dir = "state"\nlisten = "127.0.0.1:{self.port}"\ninsecure = true\n'
            "first_pause = 0.2\n\n[run]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in run.items())
        )

    def write_sites(self, base: Path) -> dict[str, Path]:
        """site.toml and data of each site, by name."""
        files = {name: self.folder / f"{name}.toml" for name in SITES}
        for number, (name, file) in enumerate(files.items()):
            write_rows(self.folder / f"{name}.jsonl", 48, number)
            model = json.dumps(str(base / "model"))
            file.write_text(
                f'[site]\nname = "{name}"\nstate_dir = "{name}"\n\n[model]\npath = {model}\n\n'
                f'[data]\ntrain = "{name}.jsonl"\n\n[engine]\nkind = "accelerate"\n'
            )
        return files

    def settings(self) -> dict[str, Any]:
        """Of the run."""
        codecs = {"codec": "lora-ternary", "downlink-codec": "lora-ternary"}
        work = {"steps": 8, "batch-size": 8, "max-length": 32, "round-timeout": 120.0}
        return {"min-sites": 2, "quorum": 2, "min-cohort": 1, "require-signatures": False, **codecs, **work}

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
        for file in self.files.values():
            link = ["--superlink", f"127.0.0.1:{self.port}", "--insecure"]
            self.start("site", "up", file, *link, environment=self.at_sites)

    def until(self, ready: Callable[[], object], what: str, command: subprocess.Popen[bytes]) -> None:
        def alive() -> None:
            assert command.poll() is None or ready(), (self.folder / "commands.log").read_text()

        wait_until(lambda: bool(ready()), timeout=self.patience, what=what, alive=alive)

    def finish(self, command: subprocess.Popen[bytes]) -> str:
        """Digest of the adapter of a run that ends well."""
        self.until(lambda: command.poll() is not None, "run", command)
        assert command.returncode == 0, (self.folder / "commands.log").read_text()
        return self.digest()

    def asked(self, round_: int) -> bool:
        """Whether a round has been asked for."""
        return any(e["event"] == "asked" and e["round"] == round_ for e in read_events(self.state))

    def supernode(self, name: str) -> psutil.Process:
        """The SuperNode of a site."""
        file = str(self.files[name])
        ups = [psutil.Process(p.pid) for p in self.processes if p.poll() is None]
        lines = {child: words_of(child) for up in ups for child in up.children(recursive=True)}
        is_node = {child: any("flower-supernode" in word for word in line[:3]) for child, line in lines.items()}
        found = [child for child, line in lines.items() if is_node[child] and file in str(line)]
        assert found
        return found[0]

    def superlink(self) -> psutil.Process:
        """The SuperLink itself, not its guard."""
        members = psutil.Process(holder(self.state / RUN_LOCK)).children(recursive=True)
        found = [p for p in members if any(Path(w).name == "flower-superlink" for w in words_of(p)[:2])]
        assert len(found) == 1
        return found[0]

    def digest(self) -> str:
        return hashlib.sha256((self.state / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()

    def rounds(self) -> list[dict[str, Any]]:
        """Rows of `history`."""
        found: list[dict[str, Any]] = json.loads(call("history", self.state, "--json").stdout)["rounds"]
        return found

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
def deployed(
    folder: Path,
    base: Path,
    rounds: int,
    at_sites: Mapping[str, str] | None = None,
    kind: type[Deployment] = Deployment,
) -> Iterator[Deployment]:
    """Sites are up, with some variables more; all is ended at the end."""
    deployment = kind(folder, base, rounds, at_sites or {})
    try:
        deployment.sites_up()
        yield deployment
    finally:
        deployment.end()
