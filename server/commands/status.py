"""``fedcompress status`` prints where a run is, and who is awaited."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedcompress.config.run_config import RunConfig
from fedcompress.errors import ConfigError
from fedcompress.formatting import ago, duration, escaped, size
from server.events import ReplyRefused, RoundCommitted, RunFailed, RunStarted, SitesMissing
from server.ledger.reader import LedgerReader, read_events, since_start
from server.ledger.recovery import LEDGER
from server.runs import (
    describe_run_state,
    find_run,
    find_run_processes,
    load_saved_settings,
    run_settings,
)
from server.state_dir import stop_requested


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options that can be set on the command line."""

    state: str
    run_name: str = ""
    watch: bool = False
    interval: float = 2.0  # seconds
    as_json: bool = False

    def __post_init__(self) -> None:
        if not 0.1 <= self.interval <= 3600:
            raise ConfigError("--interval", self.interval, "must be from 0.1 to 3600 seconds")


def run(options: Options, sleep: Callable[[float], None] = time.sleep) -> int:
    """Print the status, once or until Ctrl-C.

    Raises:
        ConfigError: there is no such state directory or run.
    """
    folder, name = find_run(options.state, options.run_name)
    if options.watch and sys.stdout.isatty() and not options.as_json:
        return _watch(folder, name, options.interval)
    while True:
        status = read_run_status(folder, name)
        print(json.dumps(status) if options.as_json else "\n".join(format_status(status)))
        if not options.watch:
            return 0
        sys.stdout.flush()
        sleep(options.interval)


def _watch(folder: Path, name: str, interval: float) -> int:
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as live:
        while True:
            live.update(Text("\n".join(format_status(read_run_status(folder, name)))), refresh=True)
            time.sleep(interval)


def read_run_status(folder: Path, name: str) -> dict[str, Any]:
    """Read the status of a run as JSON has it; times are seconds since 1970.

    ``state`` is a word of ``describe_run_state``.
    """
    working = find_run_processes(folder, name)
    events = read_events(folder, name)
    last = since_start(events)
    settings = run_settings(load_saved_settings(folder), name)
    from_ledger = _read_ledger(folder, name)
    start = _find_last(last, RunStarted.kind)
    rounds = settings.get("rounds") or (start["rounds"] if start else RunConfig.rounds)
    state = describe_run_state(last, working)
    if state not in ("waiting", "running"):
        from_ledger |= {"round": 0, "awaited": []}
    waiting = _find_last(last, SitesMissing.kind) if state == "waiting" else None
    return {
        "run": name,
        "state": state,
        "state_dir": str(folder),
        "rounds": rounds,
        **from_ledger,
        "until": _find_deadline(last, state, settings, from_ledger["awaited"]),
        "waiting": {name: waiting.get(name) for name in SitesMissing.field_names()} if waiting else None,
        "stop_requested": stop_requested(folder),
        "supervisor_pid": working.supervisor or None,
        "coordinator_pid": working.coordinator or None,
        "last_error": _find_last_error(events),
        "adapter": next((e["adapter"] for e in reversed(last) if "adapter" in e), None),
    }


def _read_ledger(folder: Path, name: str) -> dict[str, Any]:
    empty: dict[str, Any] = {
        "rounds_done": 0,
        "version": None,
        "round": 0,
        "awaited": [],
        "bytes": {"up": 0, "down": 0},
        "protocol": {"up": 0, "down": 0},
        "transport": {"up": None, "down": None},
    }
    if not (folder / LEDGER).is_file():
        return {**empty, "quality": None}
    with LedgerReader(folder) as reader:
        versions = reader.versions(name)
        quality = reader.quality(name)
        awaited = reader.awaited(name)
        return {
            "rounds_done": reader.rounds_done(name),
            "version": versions[-1].version if versions else None,
            "round": max((a.round for a in awaited), default=0),
            "awaited": [asdict(a) for a in awaited],
            "bytes": reader.payload_bytes(name),
            "protocol": reader.protocol_bytes(name),
            "transport": reader.transport_bytes(name),
            "quality": {"version": quality[-1][0], **asdict(quality[-1][1])} if quality else None,
        }


def _find_last(events: list[dict[str, Any]], *kinds: str) -> dict[str, Any] | None:
    """Return the last event of some kinds; None if there is none."""
    return next((event for event in reversed(events) if event["event"] in kinds), None)


def _find_deadline(
    last: list[dict[str, Any]], state: str, settings: dict[str, Any], awaited: list[dict[str, Any]]
) -> float | None:
    """Return when what is awaited now is given up, seconds since 1970; None if nothing is awaited."""
    if state == "running":
        return max((entry["until"] for entry in awaited), default=None)
    before = _find_last(last, RunStarted.kind, RoundCommitted.kind)
    if state == "waiting" and before:
        return float(before["at"] + settings.get("join-timeout", RunConfig.join_timeout))
    return None


def _find_last_error(events: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the last failure or refusal, without its digest."""
    keys = ("at", "event", "round", "site", "code", "message")
    event = _find_last(events, RunFailed.kind, ReplyRefused.kind)
    return {key: event[key] for key in keys if key in event} if event else None


def format_status(status: dict[str, Any]) -> list[str]:
    """Format a status as lines for people."""
    quality = status["quality"]
    error = status["last_error"]
    until = status["until"]
    rows = [
        ("run", f"{status['run']} in {status['state_dir']}"),
        ("state", status["state"] + (": stops after this round" if status["stop_requested"] else "")),
        ("round", f"{status['rounds_done']} of {status['rounds']} are done"),
    ]
    if status["waiting"]:
        rows.append(("waiting", f"{status['waiting']['sites']} of {status['waiting']['needed']} sites are connected"))
    for entry in status["awaited"]:
        rows.append(("awaited", f"{format_node(entry)}, in round {entry['round']}, asked {ago(entry['since'])}"))
    if until:
        rows.append(("until", f"{format_time(until)}, {duration(max(0.0, until - time.time()))} from now"))
    rows.append(("traffic", _format_ways(status["bytes"])))
    besides = []
    for kind in ("protocol", "transport"):
        if status[kind]["up"] is not None:
            besides.append(f"{kind} {_format_ways(status[kind])}")
    rows.append(("besides", "; ".join(besides)))
    if quality:
        rows.append(("quality", f"version {quality['version']}: {format_quality(quality)}"))
    if error:
        reason = ": ".join(str(error[key]) for key in ("site", "code", "message") if error.get(key))
        rows.append(("last error", f"{ago(error['at'])}, {error['event']}: {reason}"))
    if status["adapter"]:
        rows.append(("adapter", status["adapter"]))
    pids = {"supervisor": status["supervisor_pid"], "coordinator": status["coordinator_pid"]}
    rows.append(("processes", ", ".join(f"{name} {pid}" for name, pid in pids.items() if pid) or "none"))
    return [f"{name:<11}{escaped(str(text))}" for name, text in rows]


def _format_ways(sizes: dict[str, int]) -> str:
    return f"up {size(sizes['up'])}, down {size(sizes['down'])}"


def format_node(awaited: dict[str, Any]) -> str:
    """Return the name of a site that is awaited, or its node's id as long as it has not said whose it is."""
    return awaited["site"] or f"node {awaited['node']}"


def format_quality(quality: dict[str, Any]) -> str:
    """Format the quality of a version for people."""
    exact = f", exact {quality['exact']:.4f}" if quality.get("exact") is not None else ""
    return f"accuracy {quality['accuracy']:.4f}, loss {quality['loss']:.4f}{exact} on {quality['examples']}"


def format_time(at: float) -> str:
    """Format a time, seconds since 1970, as the time of day, with the date if it is another day's."""
    form = "%H:%M:%S" if time.strftime("%j") == time.strftime("%j", time.localtime(at)) else "%Y-%m-%d %H:%M:%S"
    return time.strftime(form, time.localtime(at))
