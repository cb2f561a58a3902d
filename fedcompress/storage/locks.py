"""Lock files let one process at a time use a folder; a lock goes with the process that holds it, however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedcompress.errors import LockedError

PATIENCE = 0.3  # seconds of trying to lock; somebody may just be looking whether the lock is held


@contextmanager
def hold(path: Path, message: str) -> Iterator[None]:
    """Hold a lock file, whose text is this process's id, for the length of a block.

    Args:
        path: the file; its folder is made.
        message: beginning of the error's message; the holder's process id is appended.

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
    """Lock an open file, or raise ``LockedError`` once the patience is over."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if time.monotonic() > deadline:
                raise LockedError(f"{message} {_read_pid(path) or 'unknown'}") from error
            time.sleep(0.05)
        else:
            return


def _read_pid(path: Path) -> int:
    """Return the process id in a lock file; 0 if there is none."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def holder(path: Path) -> int:
    """Return the process id of the holder of a lock file; 0 if nobody holds it."""
    try:
        with path.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return 0
    except OSError:
        return _wait_for_pid(path)
    return 0


def _wait_for_pid(path: Path) -> int:
    """Return the holder's process id, which it writes a moment after it has the lock; 0 if it does not in time."""
    deadline = time.monotonic() + PATIENCE
    while not (pid := _read_pid(path)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return pid
