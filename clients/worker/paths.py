"""Where a site's worker listens and writes. Used by the worker and by the relay."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

_MAX_SOCKET_PATH = 100  # bytes; Linux allows 107


def socket_path(state_dir: Path) -> Path:
    """The worker's Unix socket; in a private folder of the temporary directory if the path is too long."""
    near = state_dir.resolve() / "worker.sock"
    if len(os.fsencode(near)) <= _MAX_SOCKET_PATH:
        return near
    folder = Path(tempfile.gettempdir()) / f"fedcompress-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / (hashlib.sha256(os.fsencode(near)).hexdigest()[:24] + ".sock")


def log_dir(state_dir: Path) -> Path:
    """Folder of worker and rank logs."""
    return state_dir / "logs"
