"""``fedcompress site logs`` prints what the worker and its ranks wrote."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.commands.common import site_path
from clients.runtime.logs import KEPT, log_file, rotated_file
from clients.runtime.paths import log_dir
from clients.site import SiteConfig
from fedcompress.errors import ConfigError
from fedcompress.formatting import escaped

POLL = 0.3  # seconds between looks at the file


@dataclass(frozen=True, kw_only=True)
class Options:
    """Holds what can be set from the command line.

    Attributes:
        site: path of site.toml.
        follow: go on with lines to come, until Ctrl-C.
        rank: only lines of this rank; None: all.
        lines: how many of the lines that are there, the last, are printed.
        as_json: print lines as they are in the file.
    """

    site: str
    follow: bool = False
    rank: int | None = None
    lines: int = 50
    as_json: bool = False

    def __post_init__(self) -> None:
        if self.lines < 0:
            raise ConfigError("--lines", self.lines, "must be at least 0")
        if self.rank is not None and self.rank < 0:
            raise ConfigError("--rank", self.rank, "must be at least 0")


def run(options: Options, sleep: Callable[[float], None] = time.sleep) -> int:
    """Print the last lines, and those to come; return 0.

    Raises:
        ConfigError: site.toml is wrong, or nothing was logged yet.
    """
    folder = log_dir(SiteConfig.load(site_path(options.site)).state_dir)
    path = log_file(folder)
    if not path.is_file() and not options.follow:
        raise ConfigError("SITE", options.site, f"no log at {path}: no worker has run yet")
    last: deque[str] = deque(maxlen=options.lines)
    for number in range(KEPT, 0, -1):  # the oldest first
        older = rotated_file(path, number)
        if older.is_file():
            last.extend(line for line in _decode_lines(older.read_bytes()) if _is_wanted(line, options.rank))
    end = 0  # of the last whole line
    if path.is_file():
        data = path.read_bytes()
        end = data.rfind(b"\n") + 1
        last.extend(line for line in _decode_lines(data[:end]) if _is_wanted(line, options.rank))
    for line in last:
        print(line if options.as_json else render_line(line))
    if options.follow:
        for line in follow(path, end, sleep):
            if _is_wanted(line, options.rank):
                print(line if options.as_json else render_line(line))
                sys.stdout.flush()
    return 0


def follow(path: Path, at: int, sleep: Callable[[float], None]) -> Iterator[str]:
    """Yield lines as they come; go on in the new file when the file is rotated.

    Args:
        path: of the file that is written to now.
        at: byte of it to begin at.
        sleep: waits so many seconds between looks.

    Yields:
        Lines, without their ends.
    """
    while True:
        if path.is_file():
            with path.open("rb") as stream:
                stream.seek(at)
                yield from _follow_file(stream, path, sleep)
            at = 0
        sleep(POLL)


def _follow_file(stream: Any, path: Path, sleep: Callable[[float], None]) -> Iterator[str]:
    """Yield the lines of one open file, until it is rotated."""
    while True:
        is_last = not path.is_file() or path.stat().st_ino != os.fstat(stream.fileno()).st_ino
        for line in iter(stream.readline, b""):
            if not line.endswith(b"\n"):  # is being written
                stream.seek(-len(line), 1)
                break
            yield from _decode_lines(line)
        if is_last:
            return
        sleep(POLL)


def _decode_lines(data: bytes) -> list[str]:
    return [line for line in data.decode("utf-8", "replace").split("\n") if line]


def _parse_line(line: str) -> dict[str, Any]:
    """Return the fields of a line; one that is not JSON is a message as a whole."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        fields = None
    return fields if isinstance(fields, dict) else {"message": line}


def _is_wanted(line: str, rank: int | None) -> bool:
    return rank is None or _parse_line(line).get("rank") == rank


def render_line(line: str) -> str:
    """Return one line of the file for people; what a message says stays in its line."""
    fields = _parse_line(line)
    writer = f"rank {fields['rank']}" if "rank" in fields else "worker"
    round_ = f" {fields['run']}/{fields.get('round', '')}" if "run" in fields else ""
    second = str(fields.get("time", ""))[:19].replace("T", " ")
    head = f"{second} {fields.get('level', '?'):<7} {writer}{round_}: "
    text = escaped(head + str(fields.get("message", "")))
    traceback = str(fields.get("exception", "")).splitlines()
    return "\n".join([text, *(f"    {escaped(row)}" for row in traceback)])
