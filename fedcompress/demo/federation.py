"""A federation on loopback has a SuperLink, SuperNodes and warm workers, and one run on them."""

from __future__ import annotations

import json
import os
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedcompress.errors import ProcessError
from fedcompress.runtime.flower_app import app_folder, environment
from fedcompress.runtime.process_group import ProcessGroup, free_port, listening, script, wait_until
from fedcompress.traffic.relay import Counter, MeteringRelay, wire_path

START_TIMEOUT = 120.0  # seconds until a process must be ready
Command = list[str | Path]


@dataclass
class Federation:
    """A federation holds everything that runs on this machine for one run. Use it as a context manager.

    Args:
        folder: for Flower's files and all logs.
        sites: site.toml of each site, by name.
        port: of the SuperLink; 0 takes a free one.
        via: maps the SuperLink's address to the one that SuperNodes are given; a test puts a proxy between them.
        warm: whether the sites' workers are started at once.
        count: whether the bytes are counted that sites exchange with the SuperLink.
        look: seconds between two looks for work of each SuperNode; at 0.1 s they cost it some 5 % of a core.
        certs: folder of ``certs new --host 127.0.0.1`` with a key for each site: connections are TLS, and nodes are
            known by their keys. None: neither.
    """

    folder: Path
    sites: Mapping[str, Path]
    port: int = 0
    via: Callable[[str], str] = lambda address: address
    warm: bool = True
    count: bool = True
    look: float = 0.1
    certs: Path | None = None
    group: ProcessGroup = field(init=False)
    _counts: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        home = self.folder / "flower"
        home.mkdir(parents=True, exist_ok=True)
        self.port = self.port or free_port()
        variables = {**environment(home), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(self.look)}
        self.group = ProcessGroup(self.folder / "logs", variables)
        trust = f"root-certificates = {json.dumps(str(self.certs / 'ca.crt'))}" if self.certs else "insecure = true"
        link = f'[superlink.local]\naddress = "127.0.0.1:{self.port}"\n{trust}\n'
        (home / "config.toml").write_text(f'[superlink]\ndefault = "local"\n\n{link}')

    def __enter__(self) -> Federation:
        self.group.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        with self._counts:
            self.group.__exit__(*error)

    def start(self) -> None:
        """Start the SuperLink, the workers and the SuperNodes.

        Raises:
            ProcessError: one of them did not come up.
        """
        address = f"127.0.0.1:{self.port}"
        command: Command = [script("flower-superlink"), "--host", "127.0.0.1", "--port", str(self.port)]
        command += self._certificates() if self.certs else ["--insecure"]
        self.group.start("superlink", command, cwd=self.folder)
        for name in self.sites if self.warm else ():
            self.start_worker(name)
        wait_until(
            lambda: listening(self.port),
            timeout=START_TIMEOUT,
            what="superlink",
            alive=lambda: self.group.check("superlink"),
        )
        for name in self.sites:
            if self.certs is not None:
                self.register_node(name)
            self.start_node(name, self.counted(name, self.via(address)))

    def counted(self, name: str, address: str) -> str:
        """Start a relay that counts what a site exchanges with HOST:PORT; TLS goes through it as it is.

        Returns:
            The relay's address, or the given one if nothing is counted.
        """
        if not self.count:
            return address
        host, _, port = address.rpartition(":")
        file = self.sites[name]
        state = file.parent / tomllib.loads(file.read_text(encoding="utf-8"))["site"]["state_dir"]
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        counter = self._counts.enter_context(Counter(wire_path(state)))
        return self._counts.enter_context(MeteringRelay((host, int(port)), counter)).address

    def _certificates(self) -> Command:
        """Return the SuperLink's options for TLS and node keys."""
        assert self.certs is not None
        command: Command = ["--enable-supernode-auth"]
        for option, file in (("ca-certfile", "ca.crt"), ("certfile", "server.crt"), ("keyfile", "server.key")):
            command += [f"--ssl-{option}", self.certs / file]
        return command

    def register_node(self, name: str) -> None:
        """Register the key of a site's SuperNode at the SuperLink.

        Raises:
            ProcessError: the SuperLink did not take it.
        """
        assert self.certs is not None
        process = f"register-{name}"
        command: Command = [script("flwr"), "supernode", "register", self.certs / f"{name}.node.pub", "local"]
        self.group.start(process, command, cwd=self.folder)
        wait_until(
            lambda: self.group.finished(process),
            timeout=START_TIMEOUT,
            what=process,
            alive=lambda: self.group.check("superlink"),
        )

    def start_worker(self, name: str) -> None:
        """Start a site's warm worker by hand, so that it loads while Flower starts."""
        command: Command = [sys.executable, "-m", "clients.worker.main"]
        command += ["--site", self.sites[name], "--owner", str(os.getpid())]
        self.group.start(f"worker-{name}", command, cwd=app_folder())

    def start_node(self, name: str, address: str) -> None:
        """Start a site's SuperNode, which connects to the address HOST:PORT."""
        command: Command = [script("flower-supernode"), "--superlink", address]
        if self.certs is None:
            command.append("--insecure")
        else:
            command += ["--root-certificates", self.certs / "ca.crt"]
            command += ["--auth-supernode-private-key", self.certs / f"{name}.node.key"]
        command += ["--port", str(free_port()), "--node-config", f'site-config="{self.sites[name]}"']
        self.group.start(f"supernode-{name}", command, cwd=self.folder)

    def submit(self, run_config: Mapping[str, Any]) -> None:
        """Start ``flwr run`` with overrides of the app's run config."""
        path = self.folder / "run-config.toml"
        path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in run_config.items()))
        command: Command = [script("flwr"), "run", app_folder(), "local", "--stream", "--run-config", path]
        self.group.start("run", command, cwd=self.folder)

    def events(self, path: Path, *, timeout: float) -> Iterator[dict[str, Any]]:
        """Read the coordinator's events as they come, up to ``finished`` or ``failed``.

        Args:
            path: of ``events.jsonl`` in the coordinator's state directory.
            timeout: seconds for the whole run.

        Yields:
            One event after the other.

        Raises:
            ProcessError: a process ended early, or nothing finished in time.
        """
        deadline = time.monotonic() + timeout
        start = 0  # bytes of the file that were read
        while True:
            data = path.read_bytes() if path.exists() else b""
            end = data.rfind(b"\n") + 1
            for line in data[start:end].splitlines():
                event = json.loads(line)
                yield event
                if event["event"] in ("finished", "failed"):
                    return
            start = end
            self.group.check("superlink", *(f"supernode-{name}" for name in self.sites))
            if time.monotonic() > deadline:
                raise ProcessError(f"run: not finished after {timeout:.0f} s (see {self.folder / 'logs'})")
            self._check_submission(has_begun=start > 0)
            time.sleep(0.2)

    def _check_submission(self, *, has_begun: bool) -> None:
        """Raise ``ProcessError`` if ``flwr run`` has ended before the coordinator's first event."""
        if has_begun:
            return
        try:
            self.group.check("run")
        except ProcessError as error:
            raise ProcessError(f"flwr run: {error}") from error
