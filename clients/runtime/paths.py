"""These functions say where a site's worker listens, locks and writes; worker, ranks and ClientApp agree by them."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from fedcompress.errors import StateError

_MAX_SOCKET_PATH = 100  # bytes; Linux allows 107


def socket_path(state_dir: Path) -> Path:
    """Return the path of the worker's Unix socket.

    It is in the state directory, or in a private folder of the temporary directory where that path is too long for a
    socket.

    Raises:
        StateError: that folder is somebody else's, or others may write to it.
    """
    near = state_dir.resolve() / "worker.sock"
    if len(os.fsencode(near)) <= _MAX_SOCKET_PATH:
        return near
    folder = Path(tempfile.gettempdir()) / f"fedcompress-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise StateError(f"site.state_dir: {state_dir}: too long for a socket, and {folder} is not private: remove it")
    return folder / (hashlib.sha256(os.fsencode(near)).hexdigest()[:24] + ".sock")


def lock_path(state_dir: Path) -> Path:
    """Return the file that a running worker holds locked; its text is the worker's process id."""
    return state_dir / "worker.lock"


def session_dir(state_dir: Path) -> Path:
    """Return the folder of what a site must not lose: published states, residuals and outbox."""
    return state_dir / "session"


def log_dir(state_dir: Path) -> Path:
    """Return the folder of the logs of worker and ranks; it need not be there."""
    return state_dir / "logs"


def make_state_dir(state_dir: Path) -> Path:
    """Make the state directory and its folder of logs where they are not there; return the latter.

    The state directory is readable by its owner only: residuals say something about the rows that they come from.
    """
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    logs = log_dir(state_dir)
    logs.mkdir(exist_ok=True)
    return logs


def python_path() -> str:
    """Return a ``PYTHONPATH`` with which ``python -m clients...`` works from any folder: this process's, extended."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.pathsep.join(dict.fromkeys(paths))
