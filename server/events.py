"""The events of a run are defined here, one class for each kind, and written as one JSON object a line.

The fields of a class are the keys of its JSON object, in their order. A field that is ``Audited`` also goes into the
audit log (see ``server/audit_events.py``). Readers of ``events.jsonl`` take kinds and fields from these classes, so
that there is one list of them.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_type_hints

from fedcompress.storage.disk_space import reserve_space
from server.state_dir import EVENTS

LOG = logging.getLogger("flwr")
_AUDITED = "audited"
T = TypeVar("T")
Audited = Annotated[T, _AUDITED]  # a field that the audit log keeps, too


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened in a run, as it is told to people, logs and other processes.

    Attributes:
        kind: name of the kind, which stands under ``event`` in the JSON object.
        decision: name in the audit log; empty for kinds that are no decision, which the audit log leaves out.
    """

    kind: ClassVar[str] = ""
    decision: ClassVar[str] = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object: the kind, then the fields in order; fields that are None are left out."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        return {"event": self.kind, **values}

    @classmethod
    def from_dict(cls, event: Mapping[str, Any]) -> Self:
        """Build an event from its JSON object, of which keys that are no fields, such as ``at``, are ignored.

        Raises:
            TypeError: a field is missing.
        """
        return cls(**{name: event[name] for name in cls.field_names() if name in event})

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Return the names of all fields, in the order of the JSON object."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def audited_names(cls) -> tuple[str, ...]:
        """Return the names of the fields that the audit log keeps."""
        hints = get_type_hints(cls, include_extras=True)
        return tuple(name for name in cls.field_names() if _AUDITED in getattr(hints[name], "__metadata__", ()))


Emit = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """A coordinator process has begun to work on the run.

    Attributes:
        first_round: number of the first round that is not committed yet.
        rounds: rounds that are planned.
        parameters: entries of one update.
        require_signatures: whether replies without a registered key are refused.
        version: the version that is published now.
        digest: state digest of that version, hex.
    """

    kind: ClassVar[str] = "start"
    decision: ClassVar[str] = "run-begun"
    first_round: Audited[int]
    rounds: Audited[int]
    parameters: int
    require_signatures: Audited[bool]
    version: Audited[int]
    digest: Audited[str]


@dataclass(frozen=True, kw_only=True)
class WarningIssued(Event):
    """Something is unusual, but the run goes on.

    Attributes:
        message: text for people.
    """

    kind: ClassVar[str] = "warning"
    message: str


@dataclass(frozen=True, kw_only=True)
class DamageRepaired(Event):
    """Something that a disk had damaged was found and repaired.

    Attributes:
        message: text for people: what was damaged, and what took its place.
    """

    kind: ClassVar[str] = "recovered"
    decision: ClassVar[str] = "recovered"
    message: Audited[str]


@dataclass(frozen=True, kw_only=True)
class SitesMissing(Event):
    """Fewer nodes than ``min-sites`` are connected, so the coordinator waits for more.

    Attributes:
        sites: number of nodes that are connected.
        needed: nodes that must be connected.
    """

    kind: ClassVar[str] = "waiting"
    sites: int
    needed: int


@dataclass(frozen=True, kw_only=True)
class SitesAsked(Event):
    """Tasks of a round were sent to some nodes.

    Attributes:
        round: number of the round.
        sites: number of nodes that were asked just now.
        names: their sites' names, or the node's id where the site is not known yet.
        until_seconds: seconds for which their replies are awaited.
    """

    kind: ClassVar[str] = "asked"
    decision: ClassVar[str] = "round-asked"
    round: Audited[int]
    sites: int
    names: Audited[list[str]]
    until_seconds: float


@dataclass(frozen=True, kw_only=True)
class RepliesAwaited(Event):
    """A reminder, now and then, of who has not replied yet.

    Attributes:
        round: number of the round.
        names: sites that are awaited, or the node's id where the site is not known yet.
        left_seconds: seconds until the deadline.
    """

    kind: ClassVar[str] = "awaiting"
    round: int
    names: list[str]
    left_seconds: int


@dataclass(frozen=True, kw_only=True)
class RetryDelayed(Event):
    """There is no quorum and nobody is awaited: the coordinator waits for a new site, or to ask failed sites again.

    Attributes:
        round: number of the round.
        updates: updates that were admitted so far.
        needed: the quorum.
        left_seconds: seconds until somebody is asked again, or until the deadline.
    """

    kind: ClassVar[str] = "lingering"
    round: int
    updates: int
    needed: int
    left_seconds: int


@dataclass(frozen=True, kw_only=True)
class ReplyAdmitted(Event):
    """A reply has passed every check.

    Attributes:
        round: number of the round that the site was asked in.
        site: name of the site.
        late: versions published since the one that the update was trained from.
        bytes: size of the payload.
        digest: digest of the update, hex.
        signed: whether the envelope has a signature.
        replayed: whether the site sent again what it had trained before.
        metrics: what the site measured, rounded to four decimals.
    """

    kind: ClassVar[str] = "reply"
    decision: ClassVar[str] = "reply-admitted"
    round: Audited[int]
    site: Audited[str]
    late: int
    bytes: int
    digest: Audited[str]
    signed: Audited[bool]
    replayed: Audited[bool]
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ReplyRefused(Event):
    """A reply was not admitted, or did not come in time.

    Attributes:
        round: number of the round that the site was asked in.
        site: the site that it claims to be from, which nobody has verified; empty if it names none.
        code: the reason. It does not tell who gave it: a failure that a site reports may have any code, but for
            ``OWN_CODES`` of the ledger, which are the coordinator's alone.
        message: text for people.
        digest: digest of the payload, hex; empty if there is none.
    """

    kind: ClassVar[str] = "refused"
    decision: ClassVar[str] = "reply-refused"
    round: Audited[int]
    site: Audited[str]
    code: Audited[str]
    message: Audited[str]
    digest: Audited[str] = ""


@dataclass(frozen=True, kw_only=True)
class NodeHeld(Event):
    """A node was refused in so many rounds in a row that it is left out for a while.

    Attributes:
        node: id of the node.
        until_round: the first round in which it is asked again.
    """

    kind: ClassVar[str] = "held"
    decision: ClassVar[str] = "site-held"
    node: Audited[str]
    until_round: Audited[int]


@dataclass(frozen=True, kw_only=True)
class QualityMeasured(Event):
    """Sites have evaluated a version on their held-out rows.

    Attributes:
        version: the version that was evaluated.
        accuracy: share of predictions that are right, over all rows of all sites.
        loss: mean loss, in nats.
        examples: predictions that were made.
        exact: share of rows that are right from end to end; None where sites do not report it.
    """

    kind: ClassVar[str] = "quality"
    version: int
    accuracy: float
    loss: float
    examples: int
    exact: float | None = None


@dataclass(frozen=True, kw_only=True)
class RoundCommitted(Event):
    """A round is committed, and its version is published.

    Attributes:
        round: number of the round.
        version: the version that it has published.
        digest: state digest of that version, hex.
        asked: nodes that were asked.
        merged: updates that were merged.
        late: merged updates that were trained from an older version than the round began with.
        awaited: nodes that are still awaited, whose updates may be merged in a later round.
        uplink_bytes: payload that was received in the round.
        downlink_bytes: payload that was sent in the round.
        updates: ``SITE:DIGEST`` of every merged update, in the order of arrival.
        seconds: from the beginning of the round to its commit.
    """

    kind: ClassVar[str] = "round"
    decision: ClassVar[str] = "published"
    round: Audited[int]
    version: Audited[int]
    digest: Audited[str]
    asked: int
    merged: int
    late: int
    awaited: int
    uplink_bytes: int
    downlink_bytes: int
    updates: Audited[list[str]]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class PayloadTotal:
    """Counts what was sent in one direction over the whole run.

    Attributes:
        payload_bytes: whole envelopes.
        messages: messages that were to carry some payload.
    """

    payload_bytes: int
    messages: int


@dataclass(frozen=True, kw_only=True)
class RunExported(Event):
    """The process has ended as it should, and the published state is exported.

    Attributes:
        adapter: folder of the export.
        up: payload from sites to the coordinator.
        down: payload from the coordinator to sites.
    """

    decision: ClassVar[str] = "exported"
    adapter: Audited[str]
    up: PayloadTotal
    down: PayloadTotal


@dataclass(frozen=True, kw_only=True)
class RunFinished(RunExported):
    """All rounds are done and the last version was evaluated."""

    kind: ClassVar[str] = "finished"


@dataclass(frozen=True, kw_only=True)
class RunStopped(RunExported):
    """The run was stopped after a round, as somebody had asked for."""

    kind: ClassVar[str] = "stopped"


@dataclass(frozen=True, kw_only=True)
class RunFailed(Event):
    """The process has ended with an error.

    Attributes:
        message: type and text of the error.
        final: whether starting again cannot help.
    """

    kind: ClassVar[str] = "failed"
    decision: ClassVar[str] = "run-failed"
    message: Audited[str]
    final: bool


# Every kind of event that a coordinator emits.
EVENT_TYPES: dict[str, type[Event]] = {
    event_type.kind: event_type
    for event_type in (
        RunStarted,
        WarningIssued,
        DamageRepaired,
        SitesMissing,
        SitesAsked,
        RepliesAwaited,
        RetryDelayed,
        ReplyAdmitted,
        ReplyRefused,
        NodeHeld,
        QualityMeasured,
        RoundCommitted,
        RunFinished,
        RunStopped,
        RunFailed,
    )
}
EXPORTED = (RunFinished.kind, RunStopped.kind)  # kinds of the last event of a process that ended as it should
ENDED = (*EXPORTED, RunFailed.kind)  # kinds of the last event of a process


def build_event(event: Mapping[str, Any]) -> Event | None:
    """Build a typed event from its JSON object; return None if a coordinator of another version has written it.

    That is so if its kind is unknown, or a field is missing.
    """
    event_type = EVENT_TYPES.get(event["event"])
    try:
        return event_type.from_dict(event) if event_type is not None else None
    except TypeError:
        return None


class EventLog:
    """Appends events of a run to ``events.jsonl`` in the state directory, and logs them.

    Args:
        folder: state directory; it is made if it is not there.
        run: name of the run, which every line has.
    """

    def __init__(self, folder: Path, run: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / EVENTS
        self._run = run

    def __call__(self, event: dict[str, Any]) -> None:
        """Write one event as one line: whole or not at all, and never behind the half of another.

        Raises:
            NoSpaceError: the disk is full.
        """
        LOG.info("%s", json.dumps(event))
        line = json.dumps({"at": time.time(), "run": self._run, **event}) + "\n"
        with reserve_space(self._path), self._path.open("a+b", buffering=0) as stream:
            size = stream.seek(0, os.SEEK_END)
            if size:
                stream.seek(size - 1)
                line = line if stream.read(1) == b"\n" else "\n" + line
            try:
                _write_all(stream.fileno(), line.encode())
            except OSError:
                stream.truncate(size)
                raise


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]
