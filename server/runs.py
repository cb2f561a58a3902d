"""The runs of a state directory: their names, settings and whether somebody works on them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcompress.config.run_config import RunConfig
from fedcompress.errors import ConfigError
from fedcompress.runtime.supervision import read_facts
from fedcompress.storage.locks import holder
from server.ledger.reader import LedgerReader
from server.ledger.recovery import LEDGER
from server.settings import load_settings
from server.state_dir import COORDINATOR_LOCK, RUN_LOCK, SETTINGS, TEMPLATES


def describe_run_state(last: list[dict[str, Any]], working: RunProcesses) -> str:
    """The state, from events of the last process and from who runs."""
    kind = last[-1]["event"] if last else ""
    if kind in ("finished", "stopped"):
        return "starting" if working.since > last[-1].get("at", 0.0) else str(kind)
    if working.coordinator:
        return "waiting" if kind in ("", "start", "waiting") else "running"
    if working.supervisor:
        return "starting"
    return "failed" if kind == "failed" else "interrupted"


def state_folder(text: str) -> Path:
    """State directory of an argument that is one, or a CONFIG.toml.

    Raises:
        ConfigError: it is neither.
    """
    path = Path(text)
    if path.is_file():
        path = load_settings(path).coordinator.state_path
    if not any((path / name).is_file() for name in (LEDGER, SETTINGS)):
        raise ConfigError("DIR", path, "must be a coordinator's state directory, which `fedcompress run` makes")
    return path


def load_saved_settings(folder: Path) -> dict[str, Any]:
    """What the last ``fedcompress run`` was started with; nothing if there was none."""
    return read_facts(folder / SETTINGS)


def save_settings(folder: Path, facts: dict[str, Any]) -> None:
    """Write them, whole or not at all."""
    part = folder / f"{SETTINGS}.part"
    part.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder / SETTINGS)


def run_settings(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """The kept run config, if it is that of this run."""
    flat = settings.get("run")
    is_ours = isinstance(flat, dict) and flat.get("run", RunConfig.run) == name
    return dict(flat) if isinstance(flat, dict) and is_ours else {}


def resolve_run_name(folder: Path, name: str) -> str:
    """The run that is meant: the one named, else the one last started by ``fedcompress run``, else the last begun.

    Raises:
        ConfigError: there is no such run.
    """
    flat = load_saved_settings(folder).get("run")
    started = str(flat.get("run", RunConfig.run)) if isinstance(flat, dict) else ""
    if not (folder / LEDGER).is_file():
        if started and name in ("", started):
            return started
        raise ConfigError("--run", name, "is unknown here: nothing has run yet")
    with LedgerReader(folder) as history:
        runs = history.runs()
    found = name or started or (runs[-1] if runs else "")
    if found not in (*runs, started) or not found:
        raise ConfigError("--run", repr(found), f"must be one of {runs}")
    return found


@dataclass(frozen=True)
class RunProcesses:
    """Who works on a run: process ids, 0 for nobody, and since when there is a supervisor, seconds since 1970."""

    supervisor: int
    coordinator: int
    since: float


def find_run_processes(folder: Path, run: str) -> RunProcesses:
    """Who works on a run of a state directory, of which one is worked on at a time: that which was last started."""
    flat = load_saved_settings(folder).get("run")
    if isinstance(flat, dict) and flat.get("run", RunConfig.run) != run:
        return RunProcesses(0, 0, 0.0)
    supervisor, lock = holder(folder / RUN_LOCK), folder / RUN_LOCK
    since = lock.stat().st_mtime if supervisor else 0.0
    return RunProcesses(supervisor, holder(folder / COORDINATOR_LOCK), since)


def template_copy_path(folder: Path, run: str) -> Path:
    """Where the run's initial adapter is kept."""
    return folder / TEMPLATES / run
