"""``fedcompress watch`` shows a run on a terminal, as a web page, or as TensorBoard events."""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

from fedcompress.errors import ConfigError
from server.runs import find_run
from server.watch.view import take_snapshot

TOKEN = "FEDCOMPRESS_WATCH_TOKEN"  # variable for the token: other users can read a command line, but not this


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options that can be set on the command line."""

    state: str
    run_name: str = ""
    once: bool = False
    web: bool = False
    host: str = "127.0.0.1"
    port: int = 0
    token: str = ""
    allow_host: list[str] = field(default_factory=list)
    tensorboard: str | None = None
    as_json: bool = False

    def __post_init__(self) -> None:
        if self.web and (self.once or self.tensorboard):
            raise ConfigError("--web", True, "cannot go with --once or --tensorboard")
        if not 0 <= self.port <= 65535:
            raise ConfigError("--port", self.port, "must be from 0 to 65535")
        if not self.host:
            raise ConfigError("--host", repr(self.host), "must be an address, such as 127.0.0.1 or 0.0.0.0")


def run(options: Options) -> int:
    """Show a run, and return 0.

    Raises:
        ConfigError: there is no such state directory or run, or an option is wrong.
    """
    folder, name = find_run(options.state, options.run_name)
    if options.web:
        # without a name, the page follows what is started next
        return _serve(folder, name if options.run_name or Path(options.state).is_file() else "", options)
    if options.tensorboard:
        return _write_tensorboard(folder, name, options)
    if options.as_json:
        print(json.dumps(take_snapshot(folder, name).to_dict(), allow_nan=False))
        return 0
    from server.watch.terminal import show

    show(lambda: take_snapshot(folder, name), once=options.once)
    return 0


def _serve(folder: Path, run_name: str, options: Options) -> int:
    """Serve the page until Ctrl-C."""
    from server.watch.web import serve

    token = options.token or os.environ.get(TOKEN, "")
    with serve(folder, options.host, options.port, token, run=run_name, allowed_hosts=options.allow_host) as server:
        new_token = server.token if not token else ""  # a token of the user's is not repeated
        if options.as_json:
            print(json.dumps({"url": server.url, "token": new_token or None}))
        else:
            query = f"?token={new_token}" if new_token else ""
            print(f"{server.url}{query}")
            print("read-only, until Ctrl-C; /api/snapshot and /metrics are there too", file=sys.stderr)
        sys.stdout.flush()
        threading.Event().wait()
    return 0


def _write_tensorboard(folder: Path, name: str, options: Options) -> int:
    from server.watch.tensorboard import write_events

    target = Path(str(options.tensorboard))
    count = write_events(folder, target, run=name, once=options.once)
    result = {"run": name, "tensorboard": str(target), "scalars": count}
    print(json.dumps(result) if options.as_json else f"{count} scalars of {name}: tensorboard --logdir {target}")
    return 0
