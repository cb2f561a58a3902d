"""Writes and verifies an append-only log of decisions whose lines are chained by hashes.

``audit.jsonl`` has one JSON object a line, in ASCII, with the SHA-256 of the line before it;
``audit.head`` has the number and SHA-256 of the last line, signed by the coordinator's key if there
is one. A changed, inserted or missing line breaks the chain; a tail that was cut does not fit the head.
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

FILE = "audit.jsonl"  # the lines
HEAD = "audit.head"  # number and digest of the last line
LOCK = "audit.lock"  # held by a writer exclusively, by a reader together with other readers
FIRST = "0" * 64  # stands in the first line where others have the digest of the line before
MAX_TEXT = 500  # characters of a text in a line; the rest is cut off
MAX_LINE = 1 << 22  # bytes of a line that is accepted
BLOCK = 1 << 14  # bytes that are read from the end to find the last line; doubled until it is whole
CONTEXT = b"fedcompress-audit-v1\0"  # begins a signed head, so that it is taken for no other kind of statement
RESERVED = ("seq", "at", "event", "previous")  # keys of a line that the log itself writes


@dataclass(frozen=True)
class Head:
    """A head names the last line: its number, from 1, and its SHA-256 in hex; 0 and ``FIRST`` if there is none."""

    seq: int
    digest: str
    signature: str = ""

    @property
    def statement(self) -> bytes:
        """Return the bytes that are signed."""
        return CONTEXT + f"{self.seq}:{self.digest}".encode()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A verdict says what ``verify`` found."""

    ok: bool
    lines: int  # good lines from the beginning
    head: str  # SHA-256 of the last good line, hex
    signed: bool  # the head has a signature, and a key was given to verify it
    message: str  # what is wrong or noteworthy; may be empty
    bad_line: int = 0  # number of the line that is to blame; 0 if there is none
    unsealed: int = 0  # lines after the head; 1 if the writer was killed between writing the two


class AuditLog:
    """Appends to the log of a state directory; several processes may do so at once."""

    def __init__(self, folder: Path, key: PrivateKey | None = None) -> None:
        self._folder = folder
        self._key = key
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def append(self, event: str, **details: Any) -> None:
        """Append one line; it is on the disk when this returns.

        Args:
            event: the name of the decision.
            details: what the decision is about; texts are cut to 500 characters, and written so that none can end
                a line.

        Raises:
            ValueError: a detail has the name of a key that the log itself writes.
            StateError: the log does not fit its head, so that another line would hide what happened to it.
            NoSpaceError: the disk is full.
        """
        if clash := [name for name in details if name in RESERVED]:
            raise ValueError(f"facts: {clash}: are the log's own")
        with _lock_exclusively(self._folder / LOCK), reserve_space(self._folder / FILE):
            last = self._find_last()
            written_at = datetime.now(UTC).isoformat(timespec="milliseconds")
            own_keys = {"seq": last.seq + 1, "at": written_at, "event": event, "previous": last.digest}
            line = _format_line({**{k: _shorten(v) for k, v in details.items()}, **own_keys})
            with (self._folder / FILE).open("ab") as stream:
                stream.write(line + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            self._write_head(Head(last.seq + 1, hashlib.sha256(line).hexdigest()))

    def _find_last(self) -> Head:
        """Find the last line, and raise unless it is the one that the head names or the next."""
        path = self._folder / FILE
        head = read_head(self._folder)
        if not path.exists():
            if head.seq:
                raise StateError(f"{path}: is gone: {head.seq} lines were written")
            return head
        line = _read_last_line(path)
        last = Head(_parse_number(line), hashlib.sha256(line).hexdigest()) if line else Head(0, FIRST)
        is_next = last.seq == head.seq + 1 and json.loads(line).get("previous") == head.digest
        if (last.seq, last.digest) != (head.seq, head.digest) and not is_next:
            raise StateError(f"{path}: line {last.seq} does not fit {HEAD}: see `fedcompress audit verify`")
        if is_next:  # its writer was killed, or had no room, before the head: two such lines would be refused
            self._write_head(last)
        return last

    def _write_head(self, head: Head) -> None:
        fields = {"seq": head.seq, "digest": head.digest}
        if self._key is not None:
            fields["signature"] = self._key.sign(head.statement).hex()
        part = self._folder / f"{HEAD}.{os.getpid()}.part"
        try:
            with part.open("wb") as stream:
                stream.write(_format_line(fields) + b"\n")
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
    """Read the head of a log, without verifying it; its number is 0 if there is none.

    Raises:
        StateError: the head is malformed.
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
    """Verify every line, the chain and the head as they are at this moment; the log may grow meanwhile.

    Args:
        folder: the state directory.
        key: the coordinator's public key; if given, the head must be signed by it.
        kept: SHA-256 in hex of a line that was noted before; if given, that line must be in the log.

    Returns:
        What was found; a log that is not as it was written is no exception but a verdict.

    Raises:
        StateError: there is no log.
    """
    path = folder / FILE
    if not path.is_file():
        raise StateError(f"{path}: there is no audit log")
    with _lock_shared(folder / LOCK):
        head, problem = _read_checked_head(folder, key)
        size = path.stat().st_size
    number, digest = 0, FIRST
    digest_at_head = FIRST
    has_kept_line = False
    for line in _lines(path, size):
        line_problem, bad_line = _find_line_problem(line, number + 1, digest)
        if line_problem:
            return Verdict(
                ok=False, lines=bad_line - 1, head=digest, signed=False, message=line_problem, bad_line=bad_line
            )
        number, digest = number + 1, hashlib.sha256(line).hexdigest()
        has_kept_line = has_kept_line or digest == kept
        if number == head.seq:
            digest_at_head = digest
    bad_line = 0
    if not problem:
        problem, bad_line = _find_chain_problem(head, number, digest_at_head)
    if not problem and kept and not has_kept_line:
        problem = "the line that was kept is not in the log"
    unsealed = max(number - head.seq, 0)
    return Verdict(
        ok=not problem,
        lines=number,
        head=digest,
        signed=bool(head.signature) and key is not None,
        message=problem or ("the last line was written just before its writer was killed" if unsealed else ""),
        bad_line=bad_line,
        unsealed=unsealed,
    )


def _find_chain_problem(head: Head, lines: int, digest_at_head: str) -> tuple[str, int]:
    """Compare a chain without faults with its head; return what is wrong, and from which line on."""
    if lines < head.seq:
        return f"{head.seq - lines} lines are missing at the end: the head is line {head.seq}", lines + 1
    if digest_at_head != head.digest:
        return f"line {head.seq} is not the one that the head was made for", head.seq
    if lines > head.seq + 1:
        return f"{lines - head.seq} lines were added after the head", head.seq + 1
    return "", 0


def _read_checked_head(folder: Path, key: PublicKey | None) -> tuple[Head, str]:
    """Read the head and say what is wrong with it; empty if nothing is."""
    try:
        head = read_head(folder)
    except StateError as error:
        return Head(0, FIRST), str(error)
    if not (folder / HEAD).exists():
        return head, f"{HEAD}: is gone"
    if key is None:
        return head, ""
    try:
        is_signed = key.verifies(bytes.fromhex(head.signature), head.statement)
    except ValueError:
        is_signed = False
    return head, "" if is_signed else f"{HEAD}: is not signed by the key {key.id}"


def _find_line_problem(line: bytes, number: int, previous: str) -> tuple[str, int]:
    """Say why a line is not the one with this number, and which line is to blame; empty if it is."""
    if len(line) > MAX_LINE:
        return f"is longer than {MAX_LINE} bytes", number
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return "is not JSON", number
    if not isinstance(entry, dict) or _format_line(entry) != line:
        return "is not written as the log writes", number
    if entry.get("seq") != number:
        return f"has number {entry.get('seq')!r}", number
    if entry.get("previous") != previous:
        return "is not what the line after it was written after", max(number - 1, 1)
    return "", 0


def _format_line(entry: dict[str, Any]) -> bytes:
    """Serialize to JSON in printable ASCII, whatever the texts are."""
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return text.replace("\x7f", "\\u007f").encode()


def _shorten(value: Any) -> Any:
    """Cut texts to ``MAX_TEXT`` characters, also in lists; what JSON does not have becomes such a text."""
    if isinstance(value, str):
        return value[:MAX_TEXT]
    if isinstance(value, list | tuple):
        return [_shorten(item) for item in value]
    return value if isinstance(value, bool | int | float) or value is None else str(value)[:MAX_TEXT]


def _lines(path: Path, size: int) -> Iterator[bytes]:
    """Yield the lines of the first ``size`` bytes, without line ends; one that does not end counts as changed."""
    with path.open("rb") as stream:
        while line := stream.readline(min(MAX_LINE + 2, size - stream.tell())):
            yield line[:-1] if line.endswith(b"\n") else line + b" (the line does not end)"


def _read_last_line(path: Path) -> bytes:
    """Read the last whole line; what a writer that was killed has left after it is cut off the file."""
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


def _parse_number(line: bytes) -> int:
    try:
        return int(json.loads(line)["seq"])
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{FILE}: its last line is malformed: see `fedcompress audit verify`") from error


@contextmanager
def _lock_exclusively(path: Path) -> Iterator[None]:
    import fcntl

    with path.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def _lock_shared(path: Path) -> Iterator[None]:
    """Keep writers from appending within the block; a copy of a log has no lock file, and no writers."""
    import fcntl

    try:
        stream = path.open("rb")
    except OSError:
        yield
        return
    with stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        yield
