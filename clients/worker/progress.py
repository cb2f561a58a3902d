"""One way of writing a progress note as a line of text, for the worker's log and the ClientApp's."""

from __future__ import annotations

from fedcompress.proto.v1 import worker_pb2


def format_progress(note: worker_pb2.Progress) -> str:
    """Return a progress note as one line: phase, step of steps with its loss, and free text, where there are any."""
    steps = f" {note.step}/{note.steps} loss {note.loss:.4f}" if note.steps else ""
    return f"{note.phase}{steps} {note.text}".rstrip()
