"""An append-only log of decisions, chained by hashes.

``audit.jsonl`` has one JSON object a line, in ASCII, with the SHA-256 of the line before it;
``audit.head`` has the number and SHA-256 of the last line, signed by the coordinator's key if there
is one. A changed, inserted or missing line breaks the chain; a cut tail does not fit the head.
Whoever takes both files back to an earlier moment is found by a head that was kept elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedcompress.errors import StateError
from fedcompress.identity.keys import PrivateKey, PublicKey
from fedcompress.storage.disk_space import reserve_space

FILE, HEAD, LOCK = "audit.jsonl", "audit.head", "audit.lock"
FIRST = "0" * 64  # what stands before the first line
MAX_TEXT = 500  # characters of a fact
MAX_LINE = 1 << 22  # bytes
BLOCK = 1 << 14  # bytes
CONTEXT = b"fedcompress-audit-v1\0"
RESERVED = ("seq", "at", "event", "previous")


@dataclass(frozen=True)
class Head:
    """The last line: its number, from 1, and its SHA-256; 0 and ``FIRST`` if there is none."""

    seq: int
    digest: str
    signature: str = ""

    @property
    def statement(self) -> bytes:
        """The bytes that are signed."""
        return CONTEXT + f"{self.seq}:{self.digest}".encode()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What ``verify`` found; ``bad_line`` is 0 if no line is to blame."""

    ok: bool
    lines: int
    head: str  # SHA-256 of the last good line
    signed: bool
    message: str
    bad_line: int = 0
    unsealed: int = 0  # lines after the head: 1 if the writer was killed between the two


class AuditLog:
    """Appends to the log of a state directory; several processes may."""

    def __init__(self, folder: Path, key: PrivateKey | None = None) -> None:
        self._folder = folder
        self._key = key
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def append(self, event: str, **facts: Any) -> None:
        """Add one line; it is on the disk when this returns.

        Args:
            event: what was decided.
            facts: about what; texts are cut to 500 characters, and written so that none ends a line.

        Raises:
            StateError: the log does not fit its head, so that a line would hide what happened to it.
            NoSpaceError: the disk is full.
        """
        if clash := [name for name in facts if name in RESERVED]:
            raise ValueError(f"facts: {clash}: are the log's own")
        with _locked(self._folder / LOCK), reserve_space(self._folder / FILE):
            last = self._last()
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            body = {"seq": last.seq + 1, "at": at, "event": event, "previous": last.digest}
            line = _line({**{k: _short(v) for k, v in facts.items()}, **body})
            with (self._folder / FILE).open("ab") as stream:
                stream.write(line + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            self._write_head(Head(last.seq + 1, hashlib.sha256(line).hexdigest()))

    def _last(self) -> Head:
        """The last line, if it is what the head says, or the one after it."""
        path, head = self._folder / FILE, read_head(self._folder)
        if not path.exists():
            if head.seq:
                raise StateError(f"{path}: is gone: {head.seq} lines were written")
            return head
        line = _last_line(path)
        last = Head(_seq(line), hashlib.sha256(line).hexdigest()) if line else Head(0, FIRST)
        is_next = last.seq == head.seq + 1 and json.loads(line).get("previous") == head.digest
        if (last.seq, last.digest) != (head.seq, head.digest) and not is_next:
            raise StateError(f"{path}: line {last.seq} does not fit {HEAD}: see `fedcompress audit verify`")
        if is_next:  # its writer was killed, or had no room, before the head: two such lines would not be taken
            self._write_head(last)
        return last

    def _write_head(self, head: Head) -> None:
        facts = {"seq": head.seq, "digest": head.digest}
        if self._key is not None:
            facts["signature"] = self._key.sign(head.statement).hex()
        part = self._folder / f"{HEAD}.{os.getpid()}.part"
        try:
            with part.open("wb") as stream:
                stream.write(_line(facts) + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, self._folder / HEAD)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        handle = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_head(folder: Path) -> Head:
    """The head of a log, unverified; number 0 if there is none.

    Raises:
        StateError: it is malformed.
    """
    path = folder / HEAD
    if not path.exists():
        return Head(0, FIRST)
    try:
        raw = json.loads(path.read_bytes())
        return Head(int(raw["seq"]), str(raw["digest"]), str(raw.get("signature", "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"{path}: is malformed: {type(error).__name__}") from error


def verify(folder: Path, key: PublicKey | None = None, *, kept: str = "") -> Verdict:
    """Check every line, the chain and the head, as they are at this moment: the log may go on meanwhile.

    Args:
        folder: state directory.
        key: the coordinator's; the head must then be signed by it.
        kept: SHA-256 of a line that was noted before; it must be in the log.

    Raises:
        StateError: there is no log.
    """
    path = folder / FILE
    if not path.is_file():
        raise StateError(f"{path}: there is no audit log")
    seq, digest, seen = 0, FIRST, False
    with _still(folder / LOCK):
        head, wrong = _checked_head(folder, key)
        size = path.stat().st_size
    at_head = FIRST
    for line in _lines(path, size):
        problem, bad = _problem(line, seq + 1, digest)
        if problem:
            return Verdict(ok=False, lines=bad - 1, head=digest, signed=False, message=problem, bad_line=bad)
        seq, digest = seq + 1, hashlib.sha256(line).hexdigest()
        seen = seen or digest == kept
        at_head = digest if seq == head.seq else at_head
    wrong, bad = (wrong, 0) if wrong else _against_head(head, seq, at_head)
    if not wrong and kept and not seen:
        wrong = "the line that was kept is not in the log"
    unsealed = max(seq - head.seq, 0)
    return Verdict(
        ok=not wrong,
        lines=seq,
        head=digest,
        signed=bool(head.signature) and key is not None,
        message=wrong or ("the last line was written just before its writer was killed" if unsealed else ""),
        bad_line=bad,
        unsealed=unsealed,
    )


def _against_head(head: Head, lines: int, at_head: str) -> tuple[str, int]:
    """What is wrong with a whole chain, and from which line on."""
    if lines < head.seq:
        return f"{head.seq - lines} lines are missing at the end: the head is line {head.seq}", lines + 1
    if at_head != head.digest:
        return f"line {head.seq} is not the one that the head was made for", head.seq
    if lines > head.seq + 1:
        return f"{lines - head.seq} lines were added after the head", head.seq + 1
    return "", 0


def _checked_head(folder: Path, key: PublicKey | None) -> tuple[Head, str]:
    """The head, and what is wrong with it."""
    try:
        head = read_head(folder)
    except StateError as error:
        return Head(0, FIRST), str(error)
    if not (folder / HEAD).exists():
        return head, f"{HEAD}: is gone"
    if key is None:
        return head, ""
    try:
        good = key.verifies(bytes.fromhex(head.signature), head.statement)
    except ValueError:
        good = False
    return head, "" if good else f"{HEAD}: is not signed by the key {key.id}"


def _problem(line: bytes, seq: int, previous: str) -> tuple[str, int]:
    """Why a line is not the next one, and which line is to blame; empty if it is."""
    if len(line) > MAX_LINE:
        return f"is longer than {MAX_LINE} bytes", seq
    try:
        facts = json.loads(line)
    except (ValueError, RecursionError):
        return "is not JSON", seq
    if not isinstance(facts, dict) or _line(facts) != line:
        return "is not written as the log writes", seq
    if facts.get("seq") != seq:
        return f"has number {facts.get('seq')!r}", seq
    if facts.get("previous") != previous:
        return "is not what the line after it was written after", max(seq - 1, 1)
    return "", 0


def _line(facts: dict[str, Any]) -> bytes:
    """JSON in printable ASCII, whatever the texts are."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return text.replace("\x7f", "\\u007f").encode()


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return value[:MAX_TEXT]
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    return value if isinstance(value, bool | int | float) or value is None else str(value)[:MAX_TEXT]


def _lines(path: Path, size: int) -> Iterator[bytes]:
    """Lines of the first bytes without their ends; one that does not end is as good as changed."""
    with path.open("rb") as stream:
        while line := stream.readline(min(MAX_LINE + 2, size - stream.tell())):
            yield line[:-1] if line.endswith(b"\n") else line + b" (the line does not end)"


def _last_line(path: Path) -> bytes:
    """The last whole line; what a writer that was killed left after it is cut off."""
    with path.open("r+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        window = BLOCK
        while True:
            start = max(0, size - window)
            stream.seek(start)
            data = stream.read()
            end = data.rfind(b"\n") + 1
            begin = data.rfind(b"\n", 0, max(end - 1, 0)) + 1
            if start == 0 or begin:
                break
            window *= 2
        if end < len(data):
            stream.truncate(start + end)
    return data[begin : max(end - 1, 0)]


def _seq(line: bytes) -> int:
    try:
        return int(json.loads(line)["seq"])
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{FILE}: its last line is malformed: see `fedcompress audit verify`") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    with path.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def _still(path: Path) -> Iterator[None]:
    """Nobody appends within the block; a copy of a log has no lock, and nobody who does."""
    import fcntl

    try:
        stream = path.open("rb")
    except OSError:
        yield
        return
    with stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        yield
