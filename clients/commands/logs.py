"""``fedcompress site logs``: what the worker and its ranks wrote."""

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

POLL = 0.3  # seconds


@dataclass(frozen=True, kw_only=True)
class Options:
    """What can be set from the command line."""

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
    """Print the last lines, and those to come.

    Raises:
        ConfigError: site.toml is wrong, or nothing was logged yet.
    """
    folder = log_dir(SiteConfig.load(site_path(options.site)).state_dir)
    path = log_file(folder)
    if not path.is_file() and not options.follow:
        raise ConfigError("SITE", options.site, f"no log at {path}: no worker has run yet")
    last: deque[str] = deque(maxlen=options.lines)
    at = 0
    for number in range(KEPT, -1, -1):
        file = rotated_file(path, number) if number else path
        if file.is_file():
            data = file.read_bytes()
            at = data.rfind(b"\n") + 1 if not number else 0
            whole = data[:at] if not number else data
            last.extend(line for line in _decoded(whole) if _is_wanted(line, options.rank))
    for line in last:
        print(line if options.as_json else render_line(line))
    if options.follow:
        for line in follow(path, at, sleep):
            if _is_wanted(line, options.rank):
                print(line if options.as_json else render_line(line))
                sys.stdout.flush()
    return 0


def follow(path: Path, at: int, sleep: Callable[[float], None]) -> Iterator[str]:
    """Lines as they come, from a byte of the file on; goes on in the new file when it is rotated."""
    while True:
        if path.is_file():
            with path.open("rb") as stream:
                stream.seek(at)
                yield from _of_one(stream, path, sleep)
            at = 0
        sleep(POLL)


def _of_one(stream: Any, path: Path, sleep: Callable[[float], None]) -> Iterator[str]:
    """Lines of one file, until it is rotated."""
    while True:
        is_last = not path.is_file() or path.stat().st_ino != os.fstat(stream.fileno()).st_ino
        for line in iter(stream.readline, b""):
            if not line.endswith(b"\n"):  # is being written
                stream.seek(-len(line), 1)
                break
            yield from _decoded(line)
        if is_last:
            return
        sleep(POLL)


def _decoded(data: bytes) -> list[str]:
    return [line for line in data.decode("utf-8", "replace").split("\n") if line]


def _parsed(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"message": line}


def _is_wanted(line: str, rank: int | None) -> bool:
    return rank is None or _parsed(line).get("rank") == rank


def render_line(line: str) -> str:
    """One line of the file for people; what a message says stays in its line."""
    found = _parsed(line)
    who = f"rank {found['rank']}" if "rank" in found else "worker"
    where = f" {found['run']}/{found.get('round', '')}" if "run" in found else ""
    time_of = str(found.get("time", ""))[:19].replace("T", " ")
    head = f"{time_of} {found.get('level', '?'):<7} {who}{where}: "
    text = escaped(head + str(found.get("message", "")))
    extra = str(found.get("exception", "")).splitlines()
    return "\n".join([text, *(f"    {escaped(row)}" for row in extra)])
