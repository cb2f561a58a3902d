"""Supervisors keep processes up: they learn why one has ended, and end what a killed supervisor has left behind."""

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

from fedcompress.runtime.process_tree import find_processes, is_alive
from fedcompress.storage.disk_space import reserve_space

if TYPE_CHECKING:
    import psutil

COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # escape sequences for colours in a log
BOX_BEGIN = "╭┌┏╔"  # first characters of a box's first, last and other lines
BOX_END = "╰└┗╚"
BOX_SIDE = "│┃║"
PATIENCE = 10.0  # seconds between SIGTERM and SIGKILL
MAX_TAIL = 1 << 16  # bytes at the end of a log in which a reason is looked for
MAX_LOG = 8 << 20  # bytes; a log that is larger is put aside at the next start
SAME_BIRTH = 0.01  # seconds by which two readings of one process's time of birth may differ


def reason(log: Path, start: int) -> str:
    """Find in its log why a process has ended.

    Flower writes ``Exit Code: N``, then the reason, with a detail in brackets on the next line, and then that its
    servers were stopped. Without that, the last line that tells of an error counts, or else the last line, which may
    be a box: then it is the text in the box.

    Args:
        log: file with the output of the process, possibly of several starts.
        start: bytes of the log that are older than this start.

    Returns:
        One line without colours.
    """
    with log.open("rb") as stream:
        stream.seek(max(start, log.stat().st_size - MAX_TAIL))
        lines = COLOUR.sub("", stream.read().decode("utf-8", "replace")).splitlines()
    lines = unbox([line.strip() for line in lines if line.strip()])
    for number, line in enumerate(lines[:-1]):
        if "Exit Code:" in line:
            detail = lines[number + 2] if number + 2 < len(lines) else ""
            return f"{lines[number + 1]} {detail}" if detail.startswith("[") else lines[number + 1]
    errors = [line for line in lines if line.startswith(("ERROR", "error:"))]
    return (errors or lines or ["no output"])[-1]


def unbox(lines: list[str]) -> list[str]:
    """Return lines with a box drawn around text replaced by one line, its text; other lines are as they were."""
    found: list[str] = []
    inside: list[str] | None = None
    for line in lines:
        if line[0] in BOX_BEGIN:
            inside = []
        elif line[0] in BOX_END and inside is not None:
            found += [" ".join(inside)] if inside else []
            inside = None
        elif inside is not None and line[0] in BOX_SIDE:
            text = line.strip(BOX_SIDE).strip()
            inside += [text] if text else []
        else:
            found.append(line)
    return [*found, *(inside or [])]


def put_aside(log: Path) -> int:
    """Rename a log that has become large to ``NAME.1``.

    Returns:
        Bytes of the log that goes on: 0 if a new one begins.
    """
    size = log.stat().st_size if log.is_file() else 0
    if size > MAX_LOG:
        log.replace(log.with_name(f"{log.name}.1"))
        return 0
    return size


def read_facts(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; an empty one if the file is absent or torn."""
    try:
        parsed = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def remember(path: Path, name: str, pid: int) -> None:
    """Note a process that was started, by id and time of birth, so that ``end_noted`` can end it after a crash.

    Args:
        path: file with the notes, a JSON object; also the supervisor's own id is in it, as ``by``.
        name: of the process.
        pid: its process id.

    Raises:
        NoSpaceError: the disk is full.
    """
    notes = read_facts(path) | {"by": os.getpid(), name: {"pid": pid, "created": _time_of_birth(pid)}}
    part = path.with_name(f"{path.name}.part")
    with reserve_space(path):
        part.write_text(json.dumps(notes))
        part.replace(path)


def _time_of_birth(pid: int) -> float:
    """Return when a process was started, seconds since 1970; 0 if that cannot be learnt."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return float(psutil.Process(pid).create_time())
    return 0.0


def end_noted(path: Path) -> list[str]:
    """End the processes that ``remember`` has noted, their sessions, and what these have started; delete the notes.

    Returns:
        Names and ids of the processes of which something still lived.
    """
    import psutil

    ended = []
    for name, note in read_facts(path).items():
        with contextlib.suppress(psutil.Error, KeyError, TypeError, ValueError):
            survivors = _find_survivors(int(note["pid"]), float(note["created"]))
            if survivors:
                _end_all(survivors)
                ended.append(f"{name} (pid {note['pid']})")
    path.unlink(missing_ok=True)
    return ended


def _find_survivors(pid: int, created: float) -> list[psutil.Process]:
    """Find what lives of a process, of the session that it led, and of their descendants.

    Args:
        pid: of the process.
        created: its time of birth, seconds since 1970, by which it is told from another that got the same id later;
            0, not known, finds nothing.

    Returns:
        Living processes.
    """
    import psutil

    if not created:
        return []
    if psutil.pid_exists(pid) and abs(psutil.Process(pid).create_time() - created) > SAME_BIRTH:
        return []  # the id is another's now

    def is_member(process: psutil.Process) -> bool:
        in_session = os.getsid(process.pid) == pid and process.create_time() >= created - SAME_BIRTH
        return process.pid == pid or in_session

    return list(find_processes(is_member).values())


def _end_all(members: list[psutil.Process]) -> None:
    """Send SIGTERM to all processes, and SIGKILL to those that live on."""
    import psutil

    for number in (signal.SIGTERM, signal.SIGKILL):
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(number)
        deadline = time.monotonic() + PATIENCE
        while any(is_alive(member) for member in members) and time.monotonic() < deadline:
            time.sleep(0.1)
        members = [member for member in members if is_alive(member)]


def end_process(pid: int, *, grace: float) -> bool:
    """Send SIGTERM to a process, and SIGKILL if it lives on.

    Args:
        pid: of the process.
        grace: seconds between both signals.

    Returns:
        Whether SIGTERM was enough, or the process was gone already.
    """
    import psutil

    deadline = time.monotonic() + grace
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.terminate()
        while is_alive(process):
            if time.monotonic() > deadline:
                process.kill()
                return False
            time.sleep(0.1)
    return True


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Keep SIGINT and SIGTERM from interrupting a block.

    Yields:
        A function that tells whether one of them has come since the block began.
    """
    received: list[int] = []

    def record(number: int, frame: object) -> None:
        received.append(number)

    previous = {number: signal.signal(number, record) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
