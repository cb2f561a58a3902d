"""Locks that go with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedcompress.errors import LockedError

PATIENCE = 0.3  # seconds; somebody may just be looking whether the lock is held


@contextmanager
def hold(path: Path, message: str) -> Iterator[None]:
    """Hold a lock file, whose text is this process's id, for the length of the block.

    Args:
        path: the file; its folder is made.
        message: of the error; the holder's process id is added.

    Raises:
        LockedError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as handle:
        _lock(handle.fileno(), path, message)
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def _lock(handle: int, path: Path, message: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if time.monotonic() > deadline:
                raise LockedError(f"{message} {_pid_in(path) or 'unknown'}") from error
            time.sleep(0.05)
        else:
            return


def _pid_in(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def holder(path: Path) -> int:
    """Process id of who holds a lock file; 0: nobody does."""
    try:
        with path.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return 0
    except OSError:
        return _written_pid(path)
    return 0


def _written_pid(path: Path) -> int:
    """The holder's process id, which it writes a moment after it has the lock."""
    deadline = time.monotonic() + PATIENCE
    while not (pid := _pid_in(path)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return pid
