"""Which of the coordinator's events are decisions, and what of them goes into the audit log."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import file_digest
from pathlib import Path
from typing import Any

from fedcompress.identity.audit import AuditLog

Emit = Callable[[dict[str, Any]], None]
# Event: its name in the log, and the facts that are kept.
DECISIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "start": ("run-begun", ("first_round", "rounds", "version", "digest", "require_signatures")),
    "asked": ("round-asked", ("round", "names")),
    "reply": ("reply-admitted", ("round", "site", "digest", "signed", "replayed")),
    "refused": ("reply-refused", ("round", "site", "code", "digest", "message")),
    "round": ("published", ("round", "version", "digest", "updates")),
    "recovered": ("recovered", ("message",)),
    "held": ("site-held", ("node", "until_round")),
    "stopped": ("exported", ("adapter",)),
    "finished": ("exported", ("adapter",)),
    "failed": ("run-failed", ("message",)),
}
WEIGHTS = ("adapter_model.safetensors", "model.safetensors")  # of an adapter, of a model


class AuditedEvents:
    """Writes decisions into the log before they are told to anybody else."""

    def __init__(self, log: AuditLog, run: str, emit: Emit) -> None:
        self._log = log
        self._run = run
        self._emit = emit

    def __call__(self, event: dict[str, Any]) -> None:
        """One event."""
        name, facts = DECISIONS.get(event["event"], ("", ()))
        if name:
            kept = {fact: event[fact] for fact in facts if fact in event}
            if name == "exported":
                kept["digest"] = _digest(Path(event["adapter"]))
            self._log.append(name, run=self._run, **kept)
        self._emit(event)


def _digest(folder: Path) -> str:
    """SHA-256 of the exported weights in hex, read piece by piece; empty if there are none."""
    for path in (folder / name for name in WEIGHTS):
        if path.is_file():
            with path.open("rb") as stream:
                return file_digest(stream, "sha256").hexdigest()
    return ""
