"""Shows on stderr what ``fedcompress run`` does: a live status on a terminal, else a line for each event."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedcompress.errors import FedCompressError
from fedcompress.formatting import duration, escaped, size
from server.commands.status import format_node, format_quality, format_status, format_time, read_run_status
from server.events import (
    DamageRepaired,
    NodeHeld,
    QualityMeasured,
    RepliesAwaited,
    ReplyAdmitted,
    ReplyRefused,
    RetryDelayed,
    RoundCommitted,
    RunExported,
    RunFailed,
    RunStarted,
    SitesAsked,
    SitesMissing,
    WarningIssued,
    build_event,
)

LINES = 10  # lines of what was said that the live view keeps
LOOK = 1.0  # seconds between two looks at the state directory
TELLS_AWAITED = (SitesAsked.kind, ReplyAdmitted.kind, ReplyRefused.kind)  # events told with who is still awaited


class RunPlainView:
    """Prints lines with the time, for logs.

    Args:
        folder: state directory.
        run: name of the run.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._folder = folder
        self._run = run
        self._rounds = 0  # rounds that are planned; 0 until an event has told it

    def __enter__(self) -> RunPlainView:
        return self

    def __exit__(self, *error: Any) -> None:
        return None

    def _read_status(self) -> dict[str, Any] | None:
        """Read the status; None while the ledger cannot be read: the coordinator mends it, and the run goes on."""
        try:
            return read_run_status(self._folder, self._run)
        except (FedCompressError, OSError):
            return None

    def say(self, line: str) -> None:
        """Show a line to people."""
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self._run}: {escaped(line)}", file=sys.stderr, flush=True)

    def show(self) -> None:
        """Update what is shown, which is nothing here."""

    def on_event(self, event: dict[str, Any]) -> None:
        """Show an event of the coordinator, given as its JSON object."""
        self._rounds = event.get("rounds", self._rounds)
        awaited: list[str] = []
        if event["event"] in TELLS_AWAITED:
            status = self._read_status()  # the ledger may be ahead of the event
            entries = status["awaited"] if status else []
            awaited = [format_node(entry) for entry in entries if entry["round"] == event["round"]]
        line = format_event(event, self._rounds, awaited)
        if line:
            self.say(line)


class RunLiveView(RunPlainView):
    """Redraws the status in place, with the last lines that were said below it.

    Args:
        folder: state directory.
        run: name of the run.
    """

    def __init__(self, folder: Path, run: str) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(folder, run)
        self._lines: list[str] = []
        self._looked_at = 0.0  # when the status was last read, on the monotonic clock
        self._live = Live(console=Console(stderr=True), auto_refresh=False)

    def __enter__(self) -> RunLiveView:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def say(self, line: str) -> None:
        """Show a line below the status."""
        self._lines = [*self._lines, f"{time.strftime('%H:%M:%S')} {escaped(line)}"][-LINES:]
        self._looked_at = 0.0
        self.show()

    def show(self) -> None:
        """Update what is shown, at most once a second."""
        from rich.text import Text

        if time.monotonic() - self._looked_at > LOOK:
            self._looked_at = time.monotonic()
            status = self._read_status()
            head = format_status(status) if status else [f"{self._run}: its ledger cannot be read now"]
            text = "\n".join([*head, "", *self._lines, "", "Ctrl-C stops the run"])
            self._live.update(Text(text), refresh=True)


def format_event(event: dict[str, Any], rounds: int, awaited: Sequence[str]) -> str:
    """Format an event as one line for people.

    Args:
        event: its JSON object, with the time ``at`` which it was logged, seconds since 1970.
        rounds: rounds that are planned; 0 if not known.
        awaited: names of the sites that are still awaited.

    Returns:
        The line; empty for events that say nothing to people.
    """
    still = f"; still awaited: {', '.join(awaited)}" if awaited else ""
    match build_event(event):
        case RunStarted() as start:
            return f"begins at round {start.first_round} of {start.rounds}, {start.parameters:,} parameters"
        case WarningIssued() | DamageRepaired() as note:
            return f"{note.kind}: {note.message}"
        case SitesMissing() as waiting:
            return f"waiting for sites: {waiting.sites} of {waiting.needed} are connected"
        case SitesAsked() as asked:
            until = format_time(event["at"] + asked.until_seconds)
            return f"{_format_round(asked.round, rounds)}: {asked.sites} sites asked, until {until}{still}"
        case RepliesAwaited() as reminder:
            left = duration(reminder.left_seconds)
            return f"{_format_round(reminder.round, rounds)}: awaited for {left} more: {', '.join(reminder.names)}"
        case RetryDelayed() as delay:
            lack = f"{delay.updates} of {delay.needed} updates that are needed, and nobody is awaited"
            left = duration(delay.left_seconds)
            return f"{_format_round(delay.round, rounds)}: {lack}: waiting {left} for another site, or to ask again"
        case NodeHeld() as held:
            return f"node {held.node}: is not asked before round {held.until_round}: refused too often"
        case ReplyAdmitted() as reply:
            return f"{_format_round(reply.round, rounds)}: {reply.site} sent {size(reply.bytes)}{still}"
        case ReplyRefused() as refusal:
            reason = f"{refusal.code}: {refusal.message}"
            return f"{_format_round(refusal.round, rounds)}: refused {refusal.site}: {reason}{still}"
        case QualityMeasured() as quality:
            return f"version {quality.version}: {format_quality(event)}"
        case RoundCommitted() as committed:
            carried = f"up {size(committed.uplink_bytes)}, down {size(committed.downlink_bytes)}"
            merged = f"merged {committed.merged} of {committed.asked}"
            return f"{_format_round(committed.round, rounds)}: {merged}, {carried}, {committed.seconds:.1f} s"
        case RunExported() as end:
            return f"{end.kind}: {end.adapter}"
        case RunFailed() as failure:
            return f"failed: {failure.message}"
    return ""


def _format_round(number: int, rounds: int) -> str:
    if number > rounds > 0:
        return "last evaluation"
    return f"round {number} of {rounds}" if rounds else f"round {number}"
