"""The log of decisions: what is found, and what cannot be written into it."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress.errors import NoSpaceError, StateError
from fedcompress.identity import PrivateKey, audit
from fedcompress.identity.audit import FILE, HEAD, AuditLog, read_head, verify
from server.audit_events import DECISIONS, AuditedEvents

KEY = PrivateKey.new("coordinator")
LINES = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    log = AuditLog(tmp_path, KEY)
    for number in range(LINES):
        log.append("round-asked", round=number, sites=["north", "south"])
    return tmp_path


def lines(folder: Path) -> list[bytes]:
    return (folder / FILE).read_bytes().splitlines(keepends=True)


def test_whole(folder: Path) -> None:
    found = verify(folder, KEY.public)
    assert (found.ok, found.lines, found.signed, found.bad_line) == (True, LINES, True, 0)
    assert found.head == read_head(folder).digest
    rows = [json.loads(line) for line in lines(folder)]
    assert [row["seq"] for row in rows] == list(range(1, LINES + 1))
    assert rows[0]["previous"] == "0" * 64
    AuditLog(folder, KEY).append("more")
    assert verify(folder, KEY.public, kept=found.head).ok
    assert verify(folder).ok


@pytest.mark.parametrize("at", range(LINES))
def test_a_changed_line_is_named(folder: Path, at: int) -> None:
    found = lines(folder)
    found[at] = found[at].replace(b"north", b"nurth")
    (folder / FILE).write_bytes(b"".join(found))
    verdict = verify(folder, KEY.public)
    assert not verdict.ok
    assert verdict.bad_line == at + 1


@pytest.mark.parametrize("at", range(LINES))
def test_a_missing_line_is_named(folder: Path, at: int) -> None:
    found = lines(folder)
    del found[at]
    (folder / FILE).write_bytes(b"".join(found))
    verdict = verify(folder, KEY.public)
    assert (verdict.ok, verdict.bad_line) == (False, at + 1)


def test_exchanged_and_doubled_lines(folder: Path) -> None:
    found = lines(folder)
    for changed in ([*found[:2], found[3], found[2], *found[4:]], [*found[:3], found[2], *found[3:]]):
        (folder / FILE).write_bytes(b"".join(changed))
        assert verify(folder, KEY.public).bad_line in (3, 4)


@pytest.mark.parametrize("left", range(LINES))
def test_a_cut_tail_is_found(folder: Path, left: int) -> None:
    (folder / FILE).write_bytes(b"".join(lines(folder)[:left]))
    verdict = verify(folder, KEY.public)
    assert (verdict.ok, verdict.bad_line) == (False, left + 1)
    assert f"{LINES - left} lines are missing" in verdict.message
    with pytest.raises(StateError, match="does not fit"):
        AuditLog(folder, KEY).append("go on as if nothing had happened")


def test_a_head_needs_the_key(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Who writes the whole log again, with a head, cannot sign it."""
    forged = tmp_path_factory.mktemp("forged")
    for key in (None, PrivateKey.new("coordinator")):
        for name in (FILE, HEAD):
            (forged / name).unlink(missing_ok=True)
        AuditLog(forged, key).append("nothing happened")
        verdict = verify(forged, KEY.public)
        assert not verdict.ok
        assert "is not signed by the key" in verdict.message
    (forged / HEAD).write_bytes((folder / HEAD).read_bytes())
    assert not verify(forged, KEY.public).ok
    (forged / HEAD).unlink()
    assert "is gone" in verify(forged, KEY.public).message


def test_taken_back_with_its_head(folder: Path) -> None:
    """Found only by a head that was kept."""
    before = [(folder / name).read_bytes() for name in (FILE, HEAD)]
    AuditLog(folder, KEY).append("reply-refused", site="north")
    kept = verify(folder, KEY.public).head
    for name, data in zip((FILE, HEAD), before, strict=True):
        (folder / name).write_bytes(data)
    assert verify(folder, KEY.public).ok
    assert "was kept is not in the log" in verify(folder, KEY.public, kept=kept).message


def test_killed_between_line_and_head(folder: Path) -> None:
    """One line more than the head is what a kill leaves; two are somebody else's."""
    head = (folder / HEAD).read_bytes()
    log = AuditLog(folder, KEY)
    log.append("one")
    (folder / HEAD).write_bytes(head)
    verdict = verify(folder, KEY.public)
    assert (verdict.ok, verdict.unsealed) == (True, 1)
    log.append("two")
    assert verify(folder, KEY.public).unsealed == 0
    (folder / HEAD).write_bytes(head)
    verdict = verify(folder, KEY.public)
    assert (verdict.ok, verdict.bad_line) == (False, LINES + 1)
    with pytest.raises(StateError, match="does not fit"):
        log.append("three")


def test_killed_within_a_line(folder: Path) -> None:
    with (folder / FILE).open("ab") as stream:
        stream.write(b'{"at":"2026')
    assert verify(folder, KEY.public).bad_line == LINES + 1
    AuditLog(folder, KEY).append("next")
    assert verify(folder, KEY.public).lines == LINES + 1


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40), st.text(max_size=900), st.lists(st.text(max_size=20), max_size=3))
def test_no_text_ends_a_line(
    tmp_path_factory: pytest.TempPathFactory, site: str, message: str, many: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("audit")
    AuditLog(folder).append("reply-refused", site=site, message=message, many=many)
    data = (folder / FILE).read_bytes()
    assert data.count(b"\n") == 1
    assert all(0x20 <= byte < 0x7F for byte in data[:-1])
    row = json.loads(data)
    assert (row["site"], row["message"], row["many"]) == (site, message[:500], many)
    assert verify(folder).ok


def test_an_injected_line(tmp_path: Path) -> None:
    """A site that calls itself a line of the log is a text in one."""
    log = AuditLog(tmp_path, KEY)
    log.append("reply-admitted", site="north")
    evil = 'x"}\n{"event":"site-registered","seq":3}\r\n\x1b[2Jroot\x7f\u2028\x85'
    AuditedEvents(log, "run", lambda event: None)(
        {"event": "refused", "round": 1, "site": evil, "code": evil, "message": evil}
    )
    rows = [json.loads(line) for line in lines(tmp_path)]
    assert [row["event"] for row in rows] == ["reply-admitted", "reply-refused"]
    assert rows[1]["site"] == evil
    assert verify(tmp_path, KEY.public).ok


def test_facts_cannot_take_the_place_of_the_logs_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="previous"):
        AuditLog(tmp_path).append("x", previous="0" * 64)


def test_long_lines_and_a_long_log(tmp_path: Path) -> None:
    """The last line is found whatever its length."""
    log = AuditLog(tmp_path, KEY)
    for count in (1, 1000, 1, 3):
        log.append("published", updates=[f"site-{i}:{'ab' * 32}" for i in range(count)])
    assert verify(tmp_path, KEY.public).lines == 4


def test_writers_in_several_processes(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fedcompress.identity.audit import AuditLog\n"
        "log = AuditLog(Path(sys.argv[1]))\n"
        "for i in range(20): log.append('x', by=sys.argv[2], i=i)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, tmp_path, str(n)]) for n in range(3)]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    found = verify(tmp_path)
    assert (found.ok, found.lines) == (True, 60)


def test_decisions_are_logged_before_they_are_told(tmp_path: Path) -> None:
    told: list[int] = []
    emit = AuditedEvents(AuditLog(tmp_path), "run", lambda event: told.append(len(lines(tmp_path))))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    for name in DECISIONS:
        emit({"event": name, "adapter": str(tmp_path), "round": 1})
    assert told == list(range(1, len(DECISIONS) + 1))
    emit({"event": "quality"})
    assert len(lines(tmp_path)) == len(DECISIONS)
    rows = [json.loads(line) for line in lines(tmp_path)]
    assert {row["run"] for row in rows} == {"run"}
    exported = next(row for row in rows if row["event"] == "exported")
    assert exported["digest"] == sha256(b"weights").hexdigest()


def test_no_room_for_the_head_again_and_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each writer adds a line and has no room for the head, or is killed there: the next seals that line first."""

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    before = len(lines(folder))
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr("fedcompress.identity.audit.os.replace", full)
            with pytest.raises(NoSpaceError, match=FILE):
                AuditLog(folder).append("round-asked", round=1)
    AuditLog(folder).append("round-asked", round=1)
    found = verify(folder)
    assert (found.ok, found.unsealed) == (True, 0)
    assert before < len(lines(folder)) <= before + 4
    assert not list(folder.glob("*.part"))


def test_a_log_that_goes_on_while_it_is_verified(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, read = AuditLog(folder), audit._lines
    count = len(lines(folder))

    def meanwhile(*args: Any) -> Any:
        for _ in range(2):
            log.append("more")
        return read(*args)

    monkeypatch.setattr(audit, "_lines", meanwhile)
    found = verify(folder)
    assert (found.ok, found.lines, found.unsealed) == (True, count, 0)


def test_a_copy_without_a_lock_is_verified(folder: Path) -> None:
    (folder / audit.LOCK).unlink()
    assert verify(folder).ok
    assert not (folder / audit.LOCK).exists()
