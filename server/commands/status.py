"""``fedcompress status``: where a run is, and who is awaited."""

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
from server.ledger.reader import LedgerReader, read_events, since_start
from server.ledger.recovery import LEDGER
from server.runs import (
    describe_run_state,
    find_run_processes,
    load_saved_settings,
    resolve_run_name,
    run_settings,
    state_folder,
)
from server.state_dir import stop_requested

ENDED = ("finished", "stopped", "failed")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What can be set from the command line."""

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
    folder = state_folder(options.state)
    name = resolve_run_name(folder, options.run_name)
    if options.watch and sys.stdout.isatty() and not options.as_json:
        return _watch(folder, name, options.interval)
    while True:
        found = facts(folder, name)
        print(json.dumps(found) if options.as_json else "\n".join(lines_of(found)))
        if not options.watch:
            return 0
        sys.stdout.flush()
        sleep(options.interval)


def _watch(folder: Path, name: str, interval: float) -> int:
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as live:
        while True:
            live.update(Text("\n".join(lines_of(facts(folder, name)))), refresh=True)
            time.sleep(interval)


def facts(folder: Path, name: str) -> dict[str, Any]:
    """The status as JSON has it; times are seconds since 1970.

    ``state`` is ``starting``, ``waiting`` (for sites), ``running``, ``finished``, ``stopped``, ``failed``, or
    ``interrupted``: it has not ended, and nobody works on it.
    """
    working = find_run_processes(folder, name)
    events = read_events(folder, name)
    last = since_start(events)
    settings = run_settings(load_saved_settings(folder), name)
    found = _from_ledger(folder, name)
    rounds = settings.get("rounds") or next((e["rounds"] for e in last if e["event"] == "start"), RunConfig.rounds)
    state = describe_run_state(last, working)
    if state not in ("waiting", "running"):
        found |= {"round": 0, "awaited": []}
    return {
        "run": name,
        "state": state,
        "state_dir": str(folder),
        "rounds": rounds,
        **found,
        "until": _until(last, state, settings, found["awaited"]),
        "waiting": _last(last, "waiting", "sites", "needed") if state == "waiting" else None,
        "stop_requested": stop_requested(folder),
        "supervisor_pid": working.supervisor or None,
        "coordinator_pid": working.coordinator or None,
        "last_error": _last_error(events),
        "adapter": next((e["adapter"] for e in reversed(last) if "adapter" in e), None),
    }


def _from_ledger(folder: Path, name: str) -> dict[str, Any]:
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
    with LedgerReader(folder) as history:
        versions, quality = history.versions(name), history.quality(name)
        awaited = history.awaited(name)
        return {
            "rounds_done": history.rounds_done(name),
            "version": versions[-1][0] if versions else None,
            "round": max((a.round for a in awaited), default=0),
            "awaited": [asdict(a) for a in awaited],
            "bytes": history.payload_bytes(name),
            "protocol": history.protocol_bytes(name),
            "transport": history.transport_bytes(name),
            "quality": {"version": quality[-1][0], **asdict(quality[-1][1])} if quality else None,
        }


def _last(events: list[dict[str, Any]], kind: str, *keys: str) -> dict[str, Any] | None:
    event = next((e for e in reversed(events) if e["event"] == kind), None)
    return {key: event.get(key) for key in keys} if event else None


def _until(
    last: list[dict[str, Any]], state: str, settings: dict[str, Any], awaited: list[dict[str, Any]]
) -> float | None:
    """When what is awaited now is given up."""
    if state == "running":
        return max((entry["until"] for entry in awaited), default=None)
    began = [e["at"] for e in last if e["event"] in ("start", "round")]
    if state == "waiting" and began:
        return float(began[-1] + settings.get("join-timeout", RunConfig.join_timeout))
    return None


def _last_error(events: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The last failure or refusal."""
    keys = ("at", "event", "round", "site", "code", "message")
    event = next((e for e in reversed(events) if e["event"] in ("failed", "refused")), None)
    return {key: event[key] for key in keys if key in event} if event else None


def lines_of(found: dict[str, Any]) -> list[str]:
    """The status for people."""
    quality, error, until = found["quality"], found["last_error"], found["until"]
    rows = [
        ("run", f"{found['run']} in {found['state_dir']}"),
        ("state", found["state"] + (": stops after this round" if found["stop_requested"] else "")),
        ("round", f"{found['rounds_done']} of {found['rounds']} are done"),
    ]
    if found["waiting"]:
        rows.append(("waiting", f"{found['waiting']['sites']} of {found['waiting']['needed']} sites are connected"))
    for entry in found["awaited"]:
        rows.append(("awaited", f"{named(entry)}, in round {entry['round']}, asked {ago(entry['since'])}"))
    if until:
        rows.append(("until", f"{clock(until)}, {duration(max(0.0, until - time.time()))} from now"))
    rows.append(("traffic", _both(found["bytes"])))
    besides = [f"{kind} {_both(found[kind])}" for kind in ("protocol", "transport") if found[kind]["up"] is not None]
    rows.append(("besides", "; ".join(besides)))
    if quality:
        rows.append(("quality", f"version {quality['version']}: {figures(quality)}"))
    if error:
        what = ": ".join(str(error[k]) for k in ("site", "code", "message") if error.get(k))
        rows.append(("last error", f"{ago(error['at'])}, {error['event']}: {what}"))
    if found["adapter"]:
        rows.append(("adapter", found["adapter"]))
    pids = {"supervisor": found["supervisor_pid"], "coordinator": found["coordinator_pid"]}
    rows.append(("processes", ", ".join(f"{name} {pid}" for name, pid in pids.items() if pid) or "none"))
    return [f"{name:<11}{escaped(str(text))}" for name, text in rows]


def _both(found: dict[str, int]) -> str:
    return f"up {size(found['up'])}, down {size(found['down'])}"


def named(awaited: dict[str, Any]) -> str:
    """A site's name, or its node's id as long as it has not said whose it is."""
    return awaited["site"] or f"node {awaited['node']}"


def figures(quality: dict[str, Any]) -> str:
    """Quality for people."""
    exact = f", exact {quality['exact']:.4f}" if quality.get("exact") is not None else ""
    return f"accuracy {quality['accuracy']:.4f}, loss {quality['loss']:.4f}{exact} on {quality['examples']}"


def clock(at: float) -> str:
    """A time of day, with the date if it is another day's."""
    form = "%H:%M:%S" if time.strftime("%j") == time.strftime("%j", time.localtime(at)) else "%Y-%m-%d %H:%M:%S"
    return time.strftime(form, time.localtime(at))
