"""The file of events: lines are whole, whatever a writer before has left."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fedcompress.errors import NoSpaceError
from server.app import tell_failure
from server.events import EventLog
from server.ledger.reader import read_events


def test_after_half_a_line(tmp_path: Path) -> None:
    """Of a writer that was killed: the next event is not lost with it."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "start"}\n{"event": "rou')
    EventLog(tmp_path, "run")({"event": "asked"})
    assert [e["event"] for e in read_events(tmp_path)] == ["start", "asked"]


def test_no_room_in_the_middle_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, write = EventLog(tmp_path, "run"), os.write
    log({"event": "start"})
    before, room = (tmp_path / "events.jsonl").read_bytes(), [10]

    def short(handle: int, data: bytes) -> int:
        if not room:
            raise OSError(28, "No space left on device")
        return write(handle, data[: room.pop()])

    with monkeypatch.context() as patch:
        patch.setattr("server.events.os.write", short)
        with pytest.raises(NoSpaceError, match=r"events\.jsonl: no space left: free some"):
            log({"event": "asked"})
        assert (tmp_path / "events.jsonl").read_bytes() == before
        tell_failure(log, ValueError("why"))  # nowhere to note it: the error itself is what is raised
    log({"event": "asked"})
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["start", "asked"]
