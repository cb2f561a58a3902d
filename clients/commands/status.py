"""``fedcompress site status`` shows what the worker of a site is doing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from clients.commands.common import (
    is_terminal,
    no_worker,
    progress_line,
    read_worker_status,
    site_path,
    status_to_dict,
)
from clients.commands.supervisor import up_lock
from clients.network.connection import describe_link, read_connection
from clients.runtime.paths import lock_path
from clients.site import SiteConfig
from clients.state.baseline import Baseline
from clients.state.last_tasks import read_last_tasks
from fedcompress.errors import ConfigError
from fedcompress.formatting import ago, duration, escaped, size
from fedcompress.proto.v1 import worker_pb2
from fedcompress.storage.locks import holder
from fedcompress.traffic.relay import Wire, read_wire

BAR = 20  # characters of the progress bar


@dataclass(frozen=True, kw_only=True)
class Options:
    """Holds what can be set from the command line."""

    site: str
    as_json: bool = False
    watch: bool = False
    interval: float = 2.0  # seconds between two prints while watching

    def __post_init__(self) -> None:
        if not 0.1 <= self.interval <= 3600:
            raise ConfigError("--interval", self.interval, "must be from 0.1 to 3600 seconds")


def run(options: Options, sleep: Callable[[float], None] = time.sleep) -> int:
    """Print the status, once or until Ctrl-C; return 1 if no worker answers.

    Raises:
        ConfigError: site.toml is wrong.
    """
    site = SiteConfig.load(site_path(options.site))
    if options.watch and is_terminal() and not options.as_json:
        return _watch(site, options)
    while True:
        code = _show(site, options)
        if not options.watch:
            return code
        sys.stdout.flush()
        sleep(options.interval)


def _show(site: SiteConfig, options: Options) -> int:
    """Print the status once; return 1 if no worker answers."""
    reply = read_worker_status(site.state_dir)
    if options.as_json:
        print(json.dumps(_to_json(site, reply)))
        return 0 if reply is not None else 1
    print("\n".join(worker_lines(site, reply)))
    print(ended_line(site) + baseline_line(site), end="")
    if reply is None:
        if holder(up_lock(site.state_dir)):
            print(connection_line(site))
        return 1
    print(connection_line(site))
    return 0


def _to_json(site: SiteConfig, reply: worker_pb2.StatusReply | None) -> dict[str, Any]:
    """Return the status as values for JSON, also where no worker answers."""
    wire = read_wire(site.state_dir)
    up = holder(up_lock(site.state_dir)) or None
    alone = Baseline.load(site.state_dir)
    link = read_connection(site.state_dir) if up else None
    result: dict[str, Any] = {
        "running": reply is not None,
        "held_by": holder(lock_path(site.state_dir)) or None,
        "up_pid": up,
        "connection": {**vars(link), "advice": link.advice} if link is not None else None,
        "wire": vars(wire) if wire else None,
        "runs": [
            {"run": last.run, "round": last.round, "version": last.version, "ended": last.ended}
            for last in read_last_tasks(site.state_dir)
        ],
        "alone": {**vars(alone), "accuracy": alone.accuracy} if alone else None,
    }
    if reply is None:
        return {**result, "site": site.name, "reason": no_worker(site.state_dir)}
    return {**result, **status_to_dict(reply)}


def _watch(site: SiteConfig, options: Options) -> int:
    """Redraw the status in place until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(), auto_refresh=False) as live:
        while True:
            lines = [
                *worker_lines(site, read_worker_status(site.state_dir)),
                ended_line(site) + baseline_line(site) + connection_line(site),
            ]
            live.update(Text("\n".join(lines)), refresh=True)
            time.sleep(options.interval)


def worker_lines(site: SiteConfig, reply: worker_pb2.StatusReply | None) -> list[str]:
    """Return a status as lines for people, or why there is none."""
    return status_lines(reply) if reply is not None else [f"{site.name}: {no_worker(site.state_dir)}"]


def connection_line(site: SiteConfig) -> str:
    """Return who keeps the site's SuperNode up, and what has crossed its link, as a line below its status."""
    up = holder(up_lock(site.state_dir)) or None
    link = read_connection(site.state_dir) if up else None
    lost = f"{escaped(describe_link(link))}; kept up " if link is not None and link.connected is False else ""
    return f"{'connected':<11}{lost}{describe_connection(up)}{describe_traffic(read_wire(site.state_dir))}"


def baseline_line(site: SiteConfig) -> str:
    """Return what the site reaches alone, as a line below its status; empty if it has not tried."""
    alone = Baseline.load(site.state_dir)
    if alone is None:
        return ""
    text = f"accuracy {alone.accuracy:.4f}, loss {alone.loss:.4f} after {alone.steps} steps, by `site train --local`"
    return f"{'alone':<11}{text}\n"


def ended_line(site: SiteConfig) -> str:
    """Return that the last run has ended, as a line below the site's status; empty if it goes on, or there is none."""
    last = next(iter(read_last_tasks(site.state_dir)), None)
    if last is None or not last.ended:
        return ""
    export = "`fedcompress site export` writes its model"
    return f"{'run':<11}{last.run} {last.ended} at version {last.version}, {ago(last.at)}: {export}\n"


def status_lines(reply: worker_pb2.StatusReply) -> list[str]:
    """Return a status as lines for people."""
    rows = [
        ("site", f"{reply.site} (worker pid {reply.pid}, up {duration(reply.uptime_seconds)})"),
        ("doing", progress_line(reply)),
        ("progress", _progress(reply)),
        ("ranks", f"{reply.ranks_ready} of {reply.ranks} ready, model loaded {reply.model_loads} time(s)"),
        ("traffic", f"received {size(reply.bytes_received)}, sent {size(reply.bytes_sent)}"),
    ]
    for row in reply.traffic[:5]:
        received = f"{size(row.received_bytes)} in {row.requests} requests"
        sent = f"{size(row.sent_bytes)} in {row.replies} replies"
        rows.append(("", f"run {row.run}: {received}, {sent}"))
    used = reply.host_total_bytes - reply.host_available_bytes
    processes = f"worker {size(reply.rss_bytes)}, ranks {size(reply.ranks_rss_bytes)}"
    rows.append(("memory", f"{processes}; host {size(used)} of {size(reply.host_total_bytes)}"))
    rows += [("gpu", f"{g.index} {g.name}: {size(g.used_bytes)} of {size(g.total_bytes)}") for g in reply.gpus]
    rows.append(("last error", _last_error(reply)))
    return [f"{name:<11}{escaped(text)}" for name, text in rows if text]


def describe_connection(up: int | None) -> str:
    """Return who keeps a SuperNode up; ``up`` is the process id of the site's ``up``, None if none runs."""
    return f"by `site up`, pid {up}" if up else "not by `site up`"


def describe_traffic(wire: Wire | None) -> str:
    """Return what has crossed the site's link since it is up, to follow the connection; empty if it is not counted."""
    return f", sent {size(wire.up)} and received {size(wire.down)} in all" if wire else ""


def _progress(reply: worker_pb2.StatusReply) -> str:
    if reply.phase == "idle":
        return ""
    rounds = f" of {reply.rounds}" if reply.rounds > 1 else ""
    text = f"round {reply.round}{rounds}"
    if reply.steps:
        filled = BAR * reply.step // reply.steps
        text += f" [{'#' * filled}{'.' * (BAR - filled)}] {100 * reply.step // reply.steps} %"
    return f"{text}, last sign {duration(reply.phase_seconds)} ago {reply.text}".rstrip()


def _last_error(reply: worker_pb2.StatusReply) -> str:
    if not reply.last_error_at:
        return "none"
    where = f"run {reply.last_error_run} round {reply.last_error_round}"
    return f"{ago(reply.last_error_at)}, {where}: {reply.last_error_code}: {reply.last_error}"
