"""Where a site's worker listens and writes. Used by the worker and by the relay."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from fedcompress.errors import StateError

_MAX_SOCKET_PATH = 100  # bytes; Linux allows 107


def socket_path(state_dir: Path) -> Path:
    """The worker's Unix socket; in a private folder of the temporary directory if the path is too long.

    Raises:
        StateError: that folder is somebody else's, or others may write to it.
    """
    near = state_dir.resolve() / "worker.sock"
    if len(os.fsencode(near)) <= _MAX_SOCKET_PATH:
        return near
    folder = Path(tempfile.gettempdir()) / f"fedcompress-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise StateError(f"site.state_dir: {state_dir}: too long for a socket, and {folder} is not private: remove it")
    return folder / (hashlib.sha256(os.fsencode(near)).hexdigest()[:24] + ".sock")


def lock_path(state_dir: Path) -> Path:
    """The file that a running worker holds locked; its text is the worker's process id."""
    return state_dir / "worker.lock"


def log_dir(state_dir: Path) -> Path:
    """Folder of worker and rank logs."""
    return state_dir / "logs"


def make_state_dir(state_dir: Path) -> Path:
    """Make the folder, readable by its owner only, if it is not there; and its folder of logs, which is returned.

    Residuals say something about the rows that they come from.
    """
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    logs = log_dir(state_dir)
    logs.mkdir(exist_ok=True)
    return logs
