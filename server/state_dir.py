"""What lies where in a state directory; docs/operations.md says what each is for."""

from __future__ import annotations

from pathlib import Path

BLOBS, EVENTS = "blobs", "events.jsonl"
COORDINATOR_LOCK = "coordinator.lock"  # held by the ServerApp
RUN_LOCK = "run.lock"  # held by `fedcompress run`
PROCESSES = "processes.json"  # what `fedcompress run` has started
SETTINGS = "settings.json"  # what it was started with
TEMPLATES = "templates"  # a copy of each run's initial adapter
FLOWER, SUPERLINK_DB, LOGS = "flower", "superlink.db", "logs"
WATCH_TOKEN = "watch.token"  # of the page that `fedcompress run` serves, if it made one up
RESTORED = "restored"  # when, in seconds since 1970, if it ever was
STOP = "stop"


def request_stop(state_dir: Path) -> None:
    """Ask the coordinator of a state directory to stop after its round."""
    (state_dir / STOP).touch()


def stop_requested(state_dir: Path) -> bool:
    """Whether it was asked to."""
    return (state_dir / STOP).exists()


def clear_stop(state_dir: Path) -> None:
    """Forget it."""
    (state_dir / STOP).unlink(missing_ok=True)
