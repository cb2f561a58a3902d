"""A process group holds processes on this machine that are started in sessions of their own and all end together.

Beside it are the helpers that whoever starts servers on loopback needs: free ports, waiting, console scripts.
"""

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
from fedcompress.runtime.process_tree import find_processes, is_alive
from fedcompress.runtime.supervision import unbox

if TYPE_CHECKING:
    import psutil

GRACE = 8.0  # seconds between SIGTERM and SIGKILL


def free_port() -> int:
    """Find a TCP port of 127.0.0.1 on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(field: str, port: int) -> None:
    """Raise ``ConfigError`` unless a TCP port of 127.0.0.1 can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            rule = f"{error.strerror}: choose another port, or leave {field} out to get a free one"
            raise ConfigError(field, port, rule) from error


def wait_until(ready: Callable[[], bool], *, timeout: float, what: str, alive: Callable[[], None]) -> None:
    """Wait until something is ready, and look every 0.1 s.

    Args:
        ready: tells whether it is.
        timeout: seconds to wait at most.
        what: is waited for, as the error names it.
        alive: called before each pause; raises if a process has ended without which it can never be ready.

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
    """Return whether somebody accepts connections on host:port."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=0.5):
        return True
    return False


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Put Ctrl-C off to the end of the block: no process may be started and then not be known to its group."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if received:
        raise KeyboardInterrupt


@dataclass
class ProcessGroup:
    """A group of processes that live and die together. Use it as a context manager.

    Args:
        logs: folder for the output of each process, ``NAME.log``; it is made.
        env: environment variables that all processes get in addition to those of this one.
    """

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
        """Start a process in a session of its own, with its output appended to ``logs/NAME.log``.

        Args:
            name: of the process in this group; one that has ended may be started again under its name.
            command: program and arguments.
            cwd: working directory.
            env: environment variables of this process alone, beside those of the group.

        Returns:
            The process.
        """
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
            previous = self._running.get(name)
            self._running[name] = process
        if previous is not None:  # it has ended, or somebody else waits for it
            previous.poll()
        return process

    def check(self, *names: str) -> None:
        """Check that the named processes, or all if none is named, still run.

        Raises:
            ProcessError: one has ended; says its exit code and the last line of its log.
        """
        for name in names or self._running:
            code = self._running[name].poll()
            if code is not None:
                raise ProcessError(f"{name}: ended with exit code {code}: {self.last_line(name)}")

    def ended(self, name: str) -> int | None:
        """Return the exit code of a process, or None while it runs."""
        return self._running[name].poll()

    def finished(self, name: str) -> bool:
        """Return whether a process has ended with exit code 0.

        Raises:
            ProcessError: it has ended with another exit code.
        """
        code = self._running[name].poll()
        if code:
            self.check(name)
        return code == 0

    def last_line(self, name: str) -> str:
        """Return the last line that a process has printed, or the text of a box, and where the rest is."""
        path = self.logs / f"{name}.log"
        text = path.read_text(errors="replace") if path.exists() else ""
        lines = unbox([line.strip() for line in text.splitlines() if line.strip()])
        return f"{lines[-1] if lines else 'no output'} (see {path})"

    def _members(self, *names: str) -> dict[int, psutil.Process]:
        """Find the living processes in the sessions of the named processes, or of all, and their descendants.

        Zombies are left out: whoever is to reap an orphan need not ever do so.
        """
        sessions = {self._running[name].pid for name in names or self._running}
        return find_processes(lambda process: os.getsid(process.pid) in sessions)

    def end(self, name: str) -> None:
        """End a process and all that it has started, also where it has ended itself; unknown names are ignored."""
        if name in self._running:
            self.stop(name)

    def stop(self, *names: str) -> None:
        """End the named processes, or all, and their descendants: SIGTERM, then SIGKILL until none is left."""
        import psutil

        deadline = time.monotonic() + GRACE
        while members := self._members(*names):
            is_over = time.monotonic() > deadline
            for member in members.values():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if is_over:
                        member.kill()
                    else:
                        member.terminate()
            look_again = max(deadline, time.monotonic() + 0.2)
            while any(is_alive(member) for member in members.values()) and time.monotonic() < look_again:
                time.sleep(0.05)
        for name in names or list(self._running):
            self._running.pop(name).wait(timeout=GRACE)  # reap it

    def memory(self) -> dict[str, int]:
        """Measure the peak resident memory, in bytes, of every living process of the group, by ``pid command``."""
        import psutil

        peaks: dict[str, int] = {}
        for member in self._members().values():
            with contextlib.suppress(psutil.Error):
                peaks[f"{member.pid} {_title(member)}"] = _peak_memory(member)
        return peaks


def _peak_memory(process: psutil.Process) -> int:
    """Return the most resident bytes so far, which Linux records; elsewhere those that are resident now."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(process.memory_info().rss)


def _title(process: psutil.Process) -> str:
    """Return the first word of a command line that is neither an option nor Python itself."""
    parts = process.cmdline()
    words = [Path(p).name for p in parts if not p.startswith("-")]
    return next((w for w in words if not w.startswith("python")), "python")


def script(name: str) -> Path:
    """Find a console script of this Python's environment.

    Raises:
        ProcessError: it is not installed.
    """
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise ProcessError(f"{name}: not found beside {sys.executable}: pip install 'fedcompress[site,coordinator]'")
    return path
