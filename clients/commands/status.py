"""``fedcompress site status``: what the worker of a site is doing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from clients.commands.common import (
    is_terminal,
    no_worker,
    progress_line,
    read_status,
    site_path,
    status_to_dict,
)
from clients.commands.supervisor import up_lock
from clients.runtime.paths import lock_path
from clients.site import SiteConfig
from fedcompress.errors import ConfigError
from fedcompress.formatting import ago, duration, escaped, size
from fedcompress.proto.v1 import worker_pb2
from fedcompress.storage.locks import holder
from fedcompress.traffic.relay import Wire, read_wire


@dataclass(frozen=True, kw_only=True)
class Options:
    """What can be set from the command line."""

    site: str
    as_json: bool = False
    watch: bool = False
    interval: float = 2.0  # seconds

    def __post_init__(self) -> None:
        if not 0.1 <= self.interval <= 3600:
            raise ConfigError("--interval", self.interval, "must be from 0.1 to 3600 seconds")


def run(options: Options, sleep: Callable[[float], None] = time.sleep) -> int:
    """Print the status, once or until Ctrl-C; 1 if no worker answers.

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
    reply, up = read_status(site.state_dir), holder(up_lock(site.state_dir)) or None
    wire = read_wire(site.state_dir)
    if options.as_json:
        held = holder(lock_path(site.state_dir)) or None
        facts = {"running": reply is not None, "held_by": held, "up_pid": up, "wire": vars(wire) if wire else None}
        more = status_to_dict(reply) if reply is not None else {"site": site.name, "reason": no_worker(site.state_dir)}
        print(json.dumps({**facts, **more}))
    elif reply is None:
        print(f"{site.name}: {no_worker(site.state_dir)}")
    else:
        print("\n".join(status_lines(reply)))
        print(f"{'connected':<11}{describe_connection(up)}{describe_traffic(wire)}")
    return 0 if reply is not None else 1


def _watch(site: SiteConfig, options: Options) -> int:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(), auto_refresh=False) as live:
        while True:
            reply = read_status(site.state_dir)
            lines = status_lines(reply) if reply is not None else [f"{site.name}: {no_worker(site.state_dir)}"]
            up = describe_connection(holder(up_lock(site.state_dir)) or None)
            lines.append(f"{'connected':<11}{up}{describe_traffic(read_wire(site.state_dir))}")
            live.update(Text("\n".join(lines)), refresh=True)
            time.sleep(options.interval)


def status_lines(reply: worker_pb2.StatusReply) -> list[str]:
    """The status for people."""
    rows = [
        ("site", f"{reply.site} (worker pid {reply.pid}, up {duration(reply.uptime_seconds)})"),
        ("doing", progress_line(reply)),
        ("progress", _progress(reply)),
        ("ranks", f"{reply.ranks_ready} of {reply.ranks} ready, model loaded {reply.model_loads} time(s)"),
        ("traffic", f"received {size(reply.bytes_received)}, sent {size(reply.bytes_sent)}"),
    ]
    for row in reply.traffic[:5]:
        counts = (
            f"{size(row.received_bytes)} in {row.requests} requests, {size(row.sent_bytes)} in {row.replies} replies"
        )
        rows.append(("", f"run {row.run}: {counts}"))
    used = reply.host_total_bytes - reply.host_available_bytes
    own = f"worker {size(reply.rss_bytes)}, ranks {size(reply.ranks_rss_bytes)}"
    rows.append(("memory", f"{own}; host {size(used)} of {size(reply.host_total_bytes)}"))
    rows += [("gpu", f"{g.index} {g.name}: {size(g.used_bytes)} of {size(g.total_bytes)}") for g in reply.gpus]
    rows.append(("last error", _last_error(reply)))
    return [f"{name:<11}{escaped(text)}" for name, text in rows if text]


def describe_connection(up: int | None) -> str:
    """Whether somebody keeps a SuperNode up."""
    return f"by `site up`, pid {up}" if up else "not by `site up`"


def describe_traffic(wire: Wire | None) -> str:
    """What has crossed the site's link since it is up."""
    return f", sent {size(wire.up)} and received {size(wire.down)} in all" if wire else ""


def _progress(reply: worker_pb2.StatusReply) -> str:
    if reply.phase == "idle":
        return ""
    of = f" of {reply.rounds}" if reply.rounds > 1 else ""
    text = f"round {reply.round}{of}"
    if reply.steps:
        done = 20 * reply.step // reply.steps
        text += f" [{'#' * done}{'.' * (20 - done)}] {100 * reply.step // reply.steps} %"
    return f"{text}, last sign {duration(reply.phase_seconds)} ago {reply.text}".rstrip()


def _last_error(reply: worker_pb2.StatusReply) -> str:
    if not reply.last_error_at:
        return "none"
    where = f"run {reply.last_error_run} round {reply.last_error_round}"
    return f"{ago(reply.last_error_at)}, {where}: {reply.last_error_code}: {reply.last_error}"
