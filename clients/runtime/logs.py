"""Logs of a site: JSON objects, one a line, of the worker and its ranks, in one file of bounded size.

    {"time": ..., "level": ..., "logger": ..., "message": ..., "site": ..., "run": ..., "round": ..., "rank": ...}

``run`` and ``round`` are there in the middle of a round, ``rank`` in lines of ranks, ``exception`` after a crash.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedcompress.formatting import escaped

MAX_BYTES = 8 << 20  # of a file
KEPT = 4  # rotated files
MAX_MESSAGE = 1 << 16  # characters
_ROUND: ContextVar[tuple[str, int] | None] = ContextVar("round", default=None)


def log_file(folder: Path) -> Path:
    """The file that is written to now."""
    return folder / "worker.jsonl"


def rotated_file(path: Path, number: int) -> Path:
    """An older file; 1 is the newest of them."""
    return path.with_name(f"{path.name}.{number}")


@contextmanager
def log_round(run: str, round_: int) -> Iterator[None]:
    """Lines that this thread logs within the block say run and round."""
    token = _ROUND.set((run, round_))
    try:
        yield
    finally:
        _ROUND.reset(token)


class JsonFormatter(logging.Formatter):
    """A record as one line: ASCII, so that no character of a message can end or start one."""

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__()
        self._facts = facts

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON, without its end."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": when, "level": record.levelname, "logger": record.name}
        line["message"] = record.getMessage()[:MAX_MESSAGE]
        line |= self._facts
        current = _ROUND.get()
        if current is not None:
            line["run"], line["round"] = current
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)[-MAX_MESSAGE:]
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """A record as text; a message stays on its line."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line."""
        record.message = escaped(record.message)
        return super().formatMessage(record)


class SharedFile(logging.Handler):
    """Appends to a file that several processes write, and rotates it when it is full.

    The file is opened for every line, under a lock that all writers take: a rename by one is seen by the others.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, kept: int = KEPT) -> None:
        super().__init__()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._max_bytes, self._kept = path, max_bytes, kept

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; a full disk must not end a round."""
        try:
            line = (self.format(record) + "\n").encode()
            with self._path.with_name(f".{self._path.name}.lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._rotate(len(line))
                handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                try:
                    os.write(handle, line)
                finally:
                    os.close(handle)
        except Exception:
            self.handleError(record)

    def _rotate(self, size: int) -> None:
        try:
            full = self._path.stat().st_size + size > self._max_bytes
        except FileNotFoundError:
            return
        if not full:
            return
        for number in range(self._kept, 0, -1):
            older = self._path if number == 1 else rotated_file(self._path, number - 1)
            with contextlib.suppress(FileNotFoundError):
                older.replace(rotated_file(self._path, number))


def set_up(folder: Path, site: str, *, rank: int | None = None, quiet: bool = False) -> None:
    """Log to the site's file, and as text to stderr, there only warnings if ``quiet``."""
    facts: dict[str, Any] = {"site": site} if rank is None else {"site": site, "rank": rank}
    shared = SharedFile(log_file(folder))
    shared.setFormatter(JsonFormatter(facts))
    stream = logging.StreamHandler(sys.stderr)
    who = "%(name)s" if rank is None else f"rank {rank}"
    stream.setFormatter(TextFormatter(f"%(asctime)s {who} %(levelname)s %(message)s"))
    stream.setLevel(logging.WARNING if quiet else logging.INFO)
    logging.basicConfig(level=logging.INFO, handlers=[shared, stream])
