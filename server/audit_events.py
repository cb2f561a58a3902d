"""The coordinator's events that are decisions go into the audit log, with the fields that are marked for it.

Which events and which fields these are is said in ``server/events.py``, at each event.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import file_digest
from pathlib import Path
from typing import Any

from fedcompress.identity.audit import AuditLog
from server.events import EVENT_TYPES, RunExported

EmitDict = Callable[[dict[str, Any]], None]
# Kind of an event: its name in the audit log, and the fields that are kept there.
DECISIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    kind: (event_type.decision, event_type.audited_names())
    for kind, event_type in EVENT_TYPES.items()
    if event_type.decision
}
WEIGHTS = ("adapter_model.safetensors", "model.safetensors")  # files of an exported adapter and of an exported model


class AuditedEvents:
    """Writes decisions into the audit log before they are told to anybody else.

    Args:
        log: the audit log of the state directory.
        run: name of the run, which every line has.
        emit: takes every event after that, as its JSON object.
    """

    def __init__(self, log: AuditLog, run: str, emit: EmitDict) -> None:
        self._log = log
        self._run = run
        self._emit = emit

    def __call__(self, event: dict[str, Any]) -> None:
        """Log one event, given as its JSON object, if it is a decision; then pass it on."""
        decision, names = DECISIONS.get(event["event"], ("", ()))
        if decision:
            audited = {name: event[name] for name in names if name in event}
            if decision == RunExported.decision:
                audited["digest"] = _compute_export_digest(Path(event["adapter"]))
            self._log.append(decision, run=self._run, **audited)
        self._emit(event)


def _compute_export_digest(folder: Path) -> str:
    """Return the SHA-256 of the exported weights in hex, read piece by piece; empty if there are none."""
    for path in (folder / name for name in WEIGHTS):
        if path.is_file():
            with path.open("rb") as stream:
                return file_digest(stream, "sha256").hexdigest()
    return ""
