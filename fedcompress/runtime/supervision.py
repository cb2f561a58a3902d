"""What those share that keep processes up: why one ended, and what a supervisor that was killed has left."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcompress.storage.disk_space import reserve_space

if TYPE_CHECKING:
    import psutil

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
PATIENCE = 10.0  # seconds between SIGTERM and SIGKILL
MAX_TAIL = 1 << 16  # bytes
MAX_LOG = 8 << 20  # bytes, beyond which a log is put aside at the next start


def reason(log: Path, start: int) -> str:
    """Why a process ended, from its log after ``start`` bytes, without colours.

    Flower writes ``Exit Code: N``, then why, and then that its servers were stopped.
    """
    with log.open("rb") as stream:
        stream.seek(max(start, log.stat().st_size - MAX_TAIL))
        lines = COLOUR.sub("", stream.read().decode("utf-8", "replace")).splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    for number, line in enumerate(lines[:-1]):
        if "Exit Code:" in line:
            return lines[number + 1]
    wrong = [line for line in lines if line.startswith(("ERROR", "error:"))]
    return (wrong or lines or ["no output"])[-1]


def put_aside(log: Path) -> int:
    """Start a new log if it is large; returns the bytes of the one that goes on."""
    size = log.stat().st_size if log.is_file() else 0
    if size > MAX_LOG:
        log.replace(log.with_name(f"{log.name}.1"))
        return 0
    return size


def read_facts(path: Path) -> dict[str, Any]:
    """A JSON object from a file; nothing, if the file is absent or torn."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remember(path: Path, name: str, pid: int) -> None:
    """Note a process that was started, by id and time of birth, for one that comes after a crash.

    Raises:
        NoSpaceError: the disk is full.
    """
    facts = read_facts(path) | {"by": os.getpid(), name: {"pid": pid, "created": _created(pid)}}
    part = path.with_name(f"{path.name}.part")
    with reserve_space(path):
        part.write_text(json.dumps(facts))
        part.replace(path)


def _created(pid: int) -> float:
    import psutil

    with contextlib.suppress(psutil.Error):
        return float(psutil.Process(pid).create_time())
    return 0.0


def end_noted(path: Path) -> list[str]:
    """End what ``remember`` has noted, its session, and what they have started; forget it; say what it was."""
    import psutil

    ended = []
    for name, fact in read_facts(path).items():
        with contextlib.suppress(psutil.Error, KeyError, TypeError, ValueError):
            members = _left_of(int(fact["pid"]), float(fact["created"]))
            if members:
                _end_all(members)
                ended.append(f"{name} (pid {fact['pid']})")
    path.unlink(missing_ok=True)
    return ended


def _left_of(pid: int, created: float) -> list[psutil.Process]:
    """What lives of a process that was born then, and of the session that it led; nothing if that is unknown."""
    import psutil

    if not created or (psutil.pid_exists(pid) and abs(psutil.Process(pid).create_time() - created) > 0.01):
        return []  # the id is another's now
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            in_session = os.getsid(process.pid) == pid and process.create_time() >= created - 0.01
            if process.pid == pid or in_session:
                found |= {p.pid: p for p in [process, *process.children(recursive=True)]}
    return [process for process in found.values() if _is_alive(process)]


def _is_alive(process: psutil.Process) -> bool:
    """Whether it runs; a zombie does not, and its parent may never reap it."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _end_all(members: list[psutil.Process]) -> None:
    """SIGTERM, then SIGKILL."""
    import psutil

    for number in (signal.SIGTERM, signal.SIGKILL):
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(number)
        deadline = time.monotonic() + PATIENCE
        while any(_is_alive(member) for member in members) and time.monotonic() < deadline:
            time.sleep(0.1)
        members = [member for member in members if _is_alive(member)]


def end_process(pid: int, *, grace: float) -> bool:
    """SIGTERM, then SIGKILL after ``grace`` seconds; whether the first was enough."""
    import psutil

    deadline = time.monotonic() + grace
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.terminate()
        while _is_alive(process):
            if time.monotonic() > deadline:
                process.kill()
                return False
            time.sleep(0.1)
    return True


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM has come within the block; neither interrupts it."""
    seen: list[int] = []
    before = {n: signal.signal(n, lambda number, frame: seen.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
