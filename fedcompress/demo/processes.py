"""Processes on loopback: started in sessions of their own, and all stopped at the end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedcompress.errors import ConfigError, ProcessError

GRACE = 8.0  # seconds between SIGTERM and SIGKILL


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(field: str, port: int) -> None:
    """Raise ``ConfigError`` unless the port can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            rule = f"{error.strerror}: choose another port, or leave {field} out to get a free one"
            raise ConfigError(field, port, rule) from error


def wait_until(ready: Callable[[], bool], *, timeout: float, what: str, alive: Callable[[], None]) -> None:
    """Poll ``ready``; ``alive`` raises if a process that we wait for has ended.

    Raises:
        ProcessError: not ready in time.
    """
    deadline = time.monotonic() + timeout
    while not ready():
        alive()
        if time.monotonic() > deadline:
            raise ProcessError(f"{what}: not ready after {timeout:.0f} s")
        time.sleep(0.1)


def listening(port: int) -> bool:
    """Whether somebody accepts connections on 127.0.0.1:port."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class ProcessGroup:
    """Processes that live and die together. Use it as a context manager."""

    logs: Path
    env: Mapping[str, str]
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> ProcessGroup:
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, command: Sequence[str | Path], *, cwd: Path) -> subprocess.Popen[bytes]:
        """Start a command, with its output in ``logs/name.log``."""
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=cwd,
                env={**os.environ, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._running[name] = process
        return process

    def check(self, *names: str) -> None:
        """Raise if one of the processes (all, if none is named) has ended.

        Raises:
            ProcessError: with the exit code and the last line of its log.
        """
        for name in names or self._running:
            code = self._running[name].poll()
            if code is not None:
                raise ProcessError(f"{name}: ended with exit code {code}: {self.last_line(name)}")

    def finished(self, name: str) -> bool:
        """Whether a process has ended well.

        Raises:
            ProcessError: it has ended otherwise.
        """
        code = self._running[name].poll()
        if code:
            self.check(name)
        return code == 0

    def last_line(self, name: str) -> str:
        """The last line that a process printed, and where the rest is."""
        path = self.logs / f"{name}.log"
        lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        return f"{lines[-1].strip() if lines else 'no output'} (see {path})"

    def stop(self) -> None:
        """End all processes and their descendants: SIGTERM, then SIGKILL."""
        import psutil

        victims: dict[int, psutil.Process] = {}
        for process in self._running.values():
            try:
                root = psutil.Process(process.pid)
                victims |= {p.pid: p for p in [root, *root.children(recursive=True)]}
            except psutil.NoSuchProcess:
                continue
        for victim in victims.values():
            _quietly(victim.terminate)
        _, left = psutil.wait_procs(list(victims.values()), timeout=GRACE)
        for victim in left:
            _quietly(victim.kill)
        psutil.wait_procs(left, timeout=GRACE)
        for process in self._running.values():
            process.wait()
        self._running.clear()

    def memory(self) -> dict[str, int]:
        """Resident bytes now of every process of the group, by ``pid command``."""
        import psutil

        out: dict[str, int] = {}
        for process in self._running.values():
            try:
                root = psutil.Process(process.pid)
                for member in [root, *root.children(recursive=True)]:
                    out[f"{member.pid} {_title(member)}"] = member.memory_info().rss
            except psutil.Error:
                continue
        return out


def _title(process: object) -> str:
    parts = process.cmdline()  # type: ignore[attr-defined]
    words = [Path(p).name for p in parts if not p.startswith("-")]
    return next((w for w in words if not w.startswith("python")), "python")


def _quietly(action: Callable[[], None]) -> None:
    import psutil

    try:
        action()
    except psutil.NoSuchProcess:
        return


def script(name: str) -> Path:
    """A console script of this Python's environment.

    Raises:
        ProcessError: it is not installed.
    """
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise ProcessError(f"{name}: not found beside {sys.executable}: pip install 'fedcompress[site,coordinator]'")
    return path
