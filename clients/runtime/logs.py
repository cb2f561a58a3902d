"""A site logs JSON objects, one a line, of its worker and ranks, in one file of bounded size.

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

MAX_BYTES = 8 << 20  # bytes of a file, above which it is rotated
KEPT = 4  # rotated files that are kept
MAX_MESSAGE = 1 << 16  # characters of a message, or of an exception's end
_ROUND: ContextVar[tuple[str, int] | None] = ContextVar("round", default=None)  # run and round of this thread


def log_file(folder: Path) -> Path:
    """Return the file in a folder of logs that is written to now."""
    return folder / "worker.jsonl"


def rotated_file(path: Path, number: int) -> Path:
    """Return an older file of a log; number 1 is the newest of them."""
    return path.with_name(f"{path.name}.{number}")


@contextmanager
def log_round(run: str, round_: int) -> Iterator[None]:
    """Make the lines that this thread logs within the block say run and round."""
    token = _ROUND.set((run, round_))
    try:
        yield
    finally:
        _ROUND.reset(token)


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON: ASCII, so that no character of a message can end or start a line."""

    def __init__(self, fields: dict[str, Any]) -> None:
        """Add ``fields`` to every line."""
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """Return one line of JSON, without its end."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname, "logger": record.name}
        line["message"] = record.getMessage()[:MAX_MESSAGE]
        line |= self._fields
        current = _ROUND.get()
        if current is not None:
            line["run"], line["round"] = current
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)[-MAX_MESSAGE:]
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """Writes a record as text; control characters are escaped, so that a message stays on its line."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line, without an exception's lines."""
        record.message = escaped(record.message)
        return super().formatMessage(record)


class SharedFile(logging.Handler):
    """Appends to a file that several processes write, and rotates it when it is full.

    The file is opened for every line, under a lock that all writers take: a rename by one is seen by the others.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, kept: int = KEPT) -> None:
        super().__init__()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._max_bytes = max_bytes
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; an error is handed to ``handleError``, as a full disk must not end a round."""
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
        """Rename the files if the present one has no room for ``size`` more bytes; the oldest is overwritten."""
        try:
            is_full = self._path.stat().st_size + size > self._max_bytes
        except FileNotFoundError:
            return
        if not is_full:
            return
        for number in range(self._kept, 0, -1):
            older = self._path if number == 1 else rotated_file(self._path, number - 1)
            with contextlib.suppress(FileNotFoundError):
                older.replace(rotated_file(self._path, number))


def set_up(folder: Path, site: str, *, rank: int | None = None, quiet: bool = False) -> None:
    """Log to the site's file, and as text to stderr.

    Args:
        folder: the folder of logs.
        site: name of the site, which every line says.
        rank: number of this rank, which every line says, too; None in the worker.
        quiet: whether stderr gets only warnings and errors.
    """
    fields: dict[str, Any] = {"site": site} if rank is None else {"site": site, "rank": rank}
    shared = SharedFile(log_file(folder))
    shared.setFormatter(JsonFormatter(fields))
    stream = logging.StreamHandler(sys.stderr)
    writer = "%(name)s" if rank is None else f"rank {rank}"
    stream.setFormatter(TextFormatter(f"%(asctime)s {writer} %(levelname)s %(message)s"))
    stream.setLevel(logging.WARNING if quiet else logging.INFO)
    logging.basicConfig(level=logging.INFO, handlers=[shared, stream])
