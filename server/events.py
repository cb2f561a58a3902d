"""What the coordinator says, a JSON object a line."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from fedcompress.storage.disk_space import reserve_space
from server.state_dir import EVENTS

LOG = logging.getLogger("flwr")


class EventLog:
    """Appends events of a run to ``events.jsonl`` in the state directory, and logs them."""

    def __init__(self, folder: Path, run: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / EVENTS
        self._run = run

    def __call__(self, event: dict[str, Any]) -> None:
        """One event, one line: whole or not at all, and never behind the half of another.

        Raises:
            NoSpaceError: the disk is full.
        """
        LOG.info("%s", json.dumps(event))
        line = json.dumps({"at": time.time(), "run": self._run, **event}) + "\n"
        with reserve_space(self._path), self._path.open("a+b", buffering=0) as stream:
            size = stream.seek(0, os.SEEK_END)
            if size:
                stream.seek(size - 1)
                line = line if stream.read(1) == b"\n" else "\n" + line
            try:
                _write_all(stream.fileno(), line.encode())
            except OSError:
                stream.truncate(size)
                raise


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]
