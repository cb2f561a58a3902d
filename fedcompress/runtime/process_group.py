"""Processes on loopback: started in sessions of their own, and all stopped at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fedcompress.errors import ConfigError, ProcessError

if TYPE_CHECKING:
    import psutil

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


def listening(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody accepts connections on host:port."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=0.5):
        return True
    return False


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Put Ctrl-C off to the end of the block: a process must not be started and not be known."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if seen:
        raise KeyboardInterrupt


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

    def start(
        self, name: str, command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command, with its output in ``logs/name.log``, and variables of its own."""
        with _no_interrupt(), (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=cwd,
                env={**os.environ, **self.env, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            before = self._running.get(name)
            self._running[name] = process
        if before is not None:  # it has ended, or somebody else waits for it
            before.poll()
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

    def ended(self, name: str) -> int | None:
        """Exit code of a process, None while it runs."""
        return self._running[name].poll()

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

    def _members(self, *names: str) -> dict[int, psutil.Process]:
        """Living processes of the group (or of those named): all in a session of ours, and their descendants.

        Zombies are left out: whoever is to reap an orphan need not ever do so.
        """
        import psutil

        sessions = {self._running[name].pid for name in names or self._running}
        out: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if os.getsid(process.pid) in sessions:
                    out |= {p.pid: p for p in [process, *process.children(recursive=True)]}
        return {pid: process for pid, process in out.items() if _alive(process)}

    def end(self, name: str) -> None:
        """End one process and all that it has started, also if it has ended itself; nothing if there is none."""
        if name in self._running:
            self.stop(name)

    def stop(self, *names: str) -> None:
        """End all processes (or those named) and their descendants: SIGTERM, then SIGKILL until none is left."""
        import psutil

        deadline = time.monotonic() + GRACE
        while members := self._members(*names):
            over = time.monotonic() > deadline
            for member in members.values():
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill() if over else member.terminate()
            patience = max(deadline, time.monotonic() + 0.2)
            while any(_alive(member) for member in members.values()) and time.monotonic() < patience:
                time.sleep(0.05)
        for name in names or list(self._running):
            self._running.pop(name).wait(timeout=GRACE)  # reap it

    def memory(self) -> dict[str, int]:
        """Largest resident bytes so far of every living process of the group, by ``pid command``."""
        import psutil

        out: dict[str, int] = {}
        for member in self._members().values():
            with contextlib.suppress(psutil.Error):
                out[f"{member.pid} {_title(member)}"] = _peak_memory(member)
        return out


def _alive(process: psutil.Process) -> bool:
    import psutil

    with contextlib.suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _peak_memory(process: psutil.Process) -> int:
    """Linux keeps the high-water mark; elsewhere what is resident now."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(process.memory_info().rss)


def _title(process: psutil.Process) -> str:
    parts = process.cmdline()
    words = [Path(p).name for p in parts if not p.startswith("-")]
    return next((w for w in words if not w.startswith("python")), "python")


def script(name: str) -> Path:
    """A console script of this Python's environment.

    Raises:
        ProcessError: it is not installed.
    """
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise ProcessError(f"{name}: not found beside {sys.executable}: pip install 'fedcompress[site,coordinator]'")
    return path
