"""What ``fedcompress run`` shows, on stderr: a live status on a terminal, else a line for each event."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from fedcompress.errors import FedCompressError
from fedcompress.formatting import duration, escaped, size
from server.commands.status import clock, facts, figures, lines_of, named

LINES = 10  # of what was said, in the live view
LOOK = 1.0  # seconds between looks at the state directory


class PlainView:
    """Lines with the time, for logs."""

    def __init__(self, folder: Path, run: str) -> None:
        self._folder = folder
        self._run = run
        self._rounds = 0

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *error: Any) -> None:
        return None

    def _facts(self) -> dict[str, Any] | None:
        """The status; None while the ledger cannot be read, which the coordinator mends: a run goes on unseen."""
        try:
            return facts(self._folder, self._run)
        except (FedCompressError, OSError):
            return None

    def say(self, line: str) -> None:
        """Show a line."""
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self._run}: {escaped(line)}", file=sys.stderr, flush=True)

    def show(self) -> None:
        """Look again; there is nothing to redraw here."""

    def on_event(self, event: dict[str, Any]) -> None:
        """Show an event of the coordinator."""
        self._rounds = event.get("rounds", self._rounds)
        awaited: list[str] = []
        if event["event"] in ("asked", "reply", "refused"):
            found = self._facts()  # which may be ahead of the event
            awaited = [named(e) for e in found["awaited"] if e["round"] == event["round"]] if found else []
        line = text_of(event, self._rounds, awaited)
        if line:
            self.say(line)


class LiveView(PlainView):
    """The status, redrawn in place, and the last lines that were said."""

    def __init__(self, folder: Path, run: str) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(folder, run)
        self._said: list[str] = []
        self._looked = 0.0
        self._live = Live(console=Console(stderr=True), auto_refresh=False)

    def __enter__(self) -> LiveView:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def say(self, line: str) -> None:
        """Add a line."""
        self._said = [*self._said, f"{time.strftime('%H:%M:%S')} {escaped(line)}"][-LINES:]
        self._looked = 0.0
        self.show()

    def show(self) -> None:
        """Redraw, but not all the time."""
        from rich.text import Text

        if time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            found = self._facts()
            status = lines_of(found) if found else [f"{self._run}: its ledger cannot be read now"]
            text = "\n".join([*status, "", *self._said, "", "Ctrl-C stops the run"])
            self._live.update(Text(text), refresh=True)


def text_of(event: dict[str, Any], rounds: int, awaited: list[str]) -> str:
    """An event in one line; empty if it says nothing to people."""
    still = f"; still awaited: {', '.join(awaited)}" if awaited else ""
    match event["event"]:
        case "start":
            return f"begins at round {event['first_round']} of {event['rounds']}, {event['parameters']:,} parameters"
        case "warning" | "recovered":
            return f"{event['event']}: {event['message']}"
        case "waiting":
            return f"waiting for sites: {event['sites']} of {event['needed']} are connected"
        case "asked":
            until = clock(event["at"] + event["until_seconds"])
            return f"{_round(event, rounds)}: {event['sites']} sites asked, until {until}{still}"
        case "awaiting":
            left = duration(event["left_seconds"])
            return f"{_round(event, rounds)}: awaited for {left} more: {', '.join(event['names'])}"
        case "lingering":
            lack = f"{event['updates']} of {event['needed']} updates that are needed, and nobody is awaited"
            left = duration(event["left_seconds"])
            return f"{_round(event, rounds)}: {lack}: waiting {left} for another site, or to ask again"
        case "held":
            return f"node {event['node']}: is not asked before round {event['until_round']}: refused too often"
        case "reply":
            return f"{_round(event, rounds)}: {event['site']} sent {size(event['bytes'])}{still}"
        case "refused":
            return f"{_round(event, rounds)}: refused {event['site']}: {event['code']}: {event['message']}{still}"
        case "quality":
            return f"version {event['version']}: {figures(event)}"
        case "round":
            carried = f"up {size(event['uplink_bytes'])}, down {size(event['downlink_bytes'])}"
            merged = f"merged {event['merged']} of {event['asked']}"
            return f"{_round(event, rounds)}: {merged}, {carried}, {event['seconds']:.1f} s"
        case "finished" | "stopped":
            return f"{event['event']}: {event['adapter']}"
        case "failed":
            return f"failed: {event['message']}"
    return ""


def _round(event: dict[str, Any], rounds: int) -> str:
    if event["round"] > rounds > 0:
        return "last evaluation"
    return f"round {event['round']} of {rounds}" if rounds else f"round {event['round']}"
