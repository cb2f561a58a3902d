"""The files of a state directory are named here; docs/operations.md says what each is for."""

from __future__ import annotations

from pathlib import Path

BLOBS = "blobs"  # folder of the files that rows of the ledger point at
EVENTS = "events.jsonl"
COORDINATOR_LOCK = "coordinator.lock"  # held by the ServerApp
RUN_LOCK = "run.lock"  # held by `fedcompress run`
PROCESSES = "processes.json"  # what `fedcompress run` has started
SETTINGS = "settings.json"  # what `fedcompress run` was started with
TEMPLATES = "templates"  # folder with a copy of each run's initial adapter
FLOWER = "flower"  # folder for FLWR_HOME
SUPERLINK_DB = "superlink.db"
LOGS = "logs"  # folder of the logs of processes
WATCH_TOKEN = "watch.token"  # token of the page that `fedcompress run` serves, if it made one up
RESTORED = "restored"  # when the state directory was last restored, seconds since 1970, if it ever was
STOP = "stop"  # is there if the coordinator shall stop after its round


def request_stop(state_dir: Path) -> None:
    """Ask the coordinator of a state directory to stop after its round."""
    (state_dir / STOP).touch()


def stop_requested(state_dir: Path) -> bool:
    """Return whether the coordinator of a state directory was asked to stop."""
    return (state_dir / STOP).exists()


def clear_stop(state_dir: Path) -> None:
    """Cancel the request to stop."""
    (state_dir / STOP).unlink(missing_ok=True)
