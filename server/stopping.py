"""The wish to stop after this round: a file in the state directory that the coordinator looks for between rounds."""

from __future__ import annotations

from pathlib import Path

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
