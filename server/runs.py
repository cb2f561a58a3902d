"""A state directory has runs; here are their names, their settings, and who works on them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcompress.config.run_config import RunConfig
from fedcompress.errors import ConfigError, one_of
from fedcompress.runtime.supervision import read_facts
from fedcompress.storage.locks import holder
from server.events import EXPORTED, RunFailed, RunStarted, SitesMissing
from server.ledger.reader import LedgerReader
from server.ledger.recovery import LEDGER
from server.settings import load_settings
from server.state_dir import COORDINATOR_LOCK, RUN_LOCK, SETTINGS, TEMPLATES


def describe_run_state(last: list[dict[str, Any]], working: RunProcesses) -> str:
    """Describe the state of a run in one word.

    It is ``starting``, ``waiting`` (for sites), ``running``, ``finished``, ``stopped``, ``failed``, or ``interrupted``:
    it has not ended, and nobody works on it.

    Args:
        last: events of the last process of the coordinator.
        working: who works on the run.

    Returns:
        The state.
    """
    kind = last[-1]["event"] if last else ""
    if kind in EXPORTED:
        return "starting" if working.since > last[-1].get("at", 0.0) else str(kind)
    if working.coordinator:
        return "waiting" if kind in ("", RunStarted.kind, SitesMissing.kind) else "running"
    if working.supervisor:
        return "starting"
    return "failed" if kind == RunFailed.kind else "interrupted"


def state_folder(text: str) -> Path:
    """Find the state directory that an argument names: it is one, or a CONFIG.toml.

    Raises:
        ConfigError: it is neither.
    """
    path = Path(text)
    if path.is_file():
        path = load_settings(path).coordinator.state_path
    if not any((path / name).is_file() for name in (LEDGER, SETTINGS)):
        raise ConfigError("DIR", path, "must be a coordinator's state directory, which `fedcompress run` makes")
    return path


def find_run(text: str, name: str = "") -> tuple[Path, str]:
    """Find the state directory and the run that arguments name.

    Args:
        text: a state directory, or a CONFIG.toml, which means its own run whatever else was run there since.
        name: of a run; it counts more than what CONFIG.toml says. Empty: the last that was started.

    Returns:
        The state directory, and the name of the run.

    Raises:
        ConfigError: there is no such state directory or run.
    """
    folder, path = state_folder(text), Path(text)
    if name or not path.is_file():
        return folder, resolve_run_name(folder, name)
    own = load_settings(path).run.run
    try:
        return folder, resolve_run_name(folder, own)
    except ConfigError as error:
        raise ConfigError("CONFIG", f"{path}: run {own}", f"has not begun: --run {error.rule}") from error


def load_saved_settings(folder: Path) -> dict[str, Any]:
    """Load the settings that the last ``fedcompress run`` was started with; empty if there was none."""
    return read_facts(folder / SETTINGS)


def save_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Save the settings of ``fedcompress run`` in the state directory, whole or not at all."""
    part = folder / f"{SETTINGS}.part"
    part.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder / SETTINGS)


def run_settings(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the run config of saved settings if it is that of the run ``name``; else an empty one."""
    flat = settings.get("run")
    if isinstance(flat, dict) and flat.get("run", RunConfig.run) == name:
        return dict(flat)
    return {}


def resolve_run_name(folder: Path, name: str) -> str:
    """Return the name of the run that is meant.

    It is the one named, else the one last started by ``fedcompress run``, else the one last begun.

    Raises:
        ConfigError: there is no such run.
    """
    flat = load_saved_settings(folder).get("run")
    started = str(flat.get("run", RunConfig.run)) if isinstance(flat, dict) else ""
    if not (folder / LEDGER).is_file():
        if started and name in ("", started):
            return started
        raise ConfigError("--run", name, "is unknown here: nothing has run yet")
    with LedgerReader(folder) as reader:
        runs = reader.runs()
    resolved = name or started or (runs[-1] if runs else "")
    if resolved not in (*runs, started) or not resolved:
        raise ConfigError("--run", repr(resolved), one_of(runs, resolved))
    return resolved


@dataclass(frozen=True)
class RunProcesses:
    """The processes that work on a run.

    Attributes:
        supervisor: process id of ``fedcompress run``; 0: there is none.
        coordinator: process id of the ServerApp; 0: there is none.
        since: when the supervisor was started, seconds since 1970; 0 if there is none.
    """

    supervisor: int
    coordinator: int
    since: float


def find_run_processes(folder: Path, run: str) -> RunProcesses:
    """Find out who works on a run of a state directory.

    One run is worked on at a time: the one that was last started.
    """
    flat = load_saved_settings(folder).get("run")
    if isinstance(flat, dict) and flat.get("run", RunConfig.run) != run:
        return RunProcesses(0, 0, 0.0)
    lock = folder / RUN_LOCK
    supervisor = holder(lock)
    since = lock.stat().st_mtime if supervisor else 0.0
    return RunProcesses(supervisor=supervisor, coordinator=holder(folder / COORDINATOR_LOCK), since=since)


def template_copy_path(folder: Path, run: str) -> Path:
    """Return the path of the copy of a run's initial adapter."""
    return folder / TEMPLATES / run
