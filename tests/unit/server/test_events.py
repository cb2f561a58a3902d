"""The file of events: lines are whole, whatever a writer before has left."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fedcompress.errors import NoSpaceError
from server.app import tell_failure
from server.events import EVENT_TYPES, EventLog, QualityMeasured, ReplyRefused, build_event
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


KEYS = {
    "start": "first_round rounds parameters require_signatures version digest",
    "warning": "message",
    "recovered": "message",
    "waiting": "sites needed",
    "asked": "round sites names until_seconds",
    "awaiting": "round names left_seconds",
    "lingering": "round updates needed left_seconds",
    "reply": "round site late bytes digest signed replayed metrics",
    "refused": "round site code message digest",
    "held": "node until_round",
    "quality": "version accuracy loss examples exact",
    "round": "round version digest asked merged late awaited uplink_bytes downlink_bytes updates seconds",
    "finished": "adapter up down",
    "stopped": "adapter up down",
    "failed": "message final",
}


def test_kinds_and_keys_are_what_readers_of_the_file_know() -> None:
    assert {kind: " ".join(event_type.field_names()) for kind, event_type in EVENT_TYPES.items()} == KEYS


def test_an_event_is_its_json_object_and_back() -> None:
    for kind, event_type in EVENT_TYPES.items():
        event = event_type(**{name: number for number, name in enumerate(event_type.field_names())})
        written = event.to_dict()
        assert list(written) == ["event", *KEYS[kind].split()]
        assert build_event({"at": 1.0, "run": "run", **written}) == event


def test_a_field_that_is_not_known_is_left_out() -> None:
    assert "exact" not in QualityMeasured(version=1, accuracy=0.5, loss=1.0, examples=9).to_dict()


def test_an_event_of_another_version_is_none() -> None:
    assert build_event({"event": "something new"}) is None
    assert build_event({"event": "asked", "round": 1}) is None


def test_what_the_audit_log_keeps_of_a_refusal() -> None:
    assert ReplyRefused.audited_names() == ("round", "site", "code", "message", "digest")
    assert QualityMeasured.audited_names() == ()
