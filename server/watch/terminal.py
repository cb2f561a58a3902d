"""A snapshot on a terminal: where the run is, its sites, bytes and quality; live, or once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fedcompress.formatting import ago, duration, escaped, size
from server.watch.view import WORKING, Snapshot

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

LOOK = 1.0  # seconds
BLOCKS = "▁▂▃▄▅▆▇█"
SPARKS = 60  # columns of a sparkline
LAST_REFUSALS = 5
LAST_ROUNDS = 8
PLAIN_WIDTH = 140  # columns where there is no terminal
ENDED = ("finished", "stopped")


def sparkline(values: Sequence[float], width: int = SPARKS) -> str:
    """Numbers as blocks, the last ``width`` of them, from their least to their largest.

    Examples:
        >>> sparkline([0.0, 1.0, 0.5])
        '▁█▅'
    """
    shown = values[-width:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    span = (high - low) or 1.0
    return "".join(BLOCKS[round((v - low) / span * (len(BLOCKS) - 1))] for v in shown)


def render(shown: Snapshot) -> Group:
    """All that fits a screen."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    parts: list[object] = [Text(line) for line in _head(shown)]
    if shown.state in WORKING and shown.awaited:
        asked = shown.answered + len(shown.awaited)
        parts.append(ProgressBar(total=asked, completed=shown.answered, width=SPARKS))
    parts += [Text(), _sites(shown), Text(), _rounds(shown), Text()]
    parts += [Text(line) for line in _quality(shown) + _bytes(shown)]
    parts += [Text(line, style="yellow") for line in _refused(shown)]
    return Group(*parts)  # type: ignore[arg-type]


def _head(shown: Snapshot) -> list[str]:
    planned = f" of {shown.rounds}" if shown.rounds else ""
    lines = [f"{escaped(shown.run)}: {shown.state}, {shown.rounds_done}{planned} rounds are done"]
    if shown.error:
        lines.append(escaped(shown.error))
    if shown.round and shown.awaited and shown.since is not None and shown.until is not None:
        names = ", ".join(escaped(a.site) or f"node {a.node}" for a in shown.awaited[:10])
        more = f" and {len(shown.awaited) - 10} more" if len(shown.awaited) > 10 else ""
        left = duration(max(0.0, shown.until - shown.at))
        lines.append(f"round {shown.round}: {shown.answered} of {shown.answered + len(shown.awaited)} have answered")
        lines.append(f"awaited for {duration(max(0.0, shown.at - shown.since))}, for {left} more: {names}{more}")
    return lines


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(names):
        first = i == 0  # the one that must be read even where there is no room
        longest = min(16, max((len(row[0]) for row in rows), default=0)) if first else None
        table.add_column(
            name, justify="left" if first else "right", overflow="fold" if first else "ellipsis", min_width=longest
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _sites(shown: Snapshot) -> Table:
    rows = []
    for site in shown.sites:
        waited = "" if site.awaited_since is None else duration(max(0.0, shown.at - site.awaited_since))
        figures = (_figure(site.accuracy), _figure(site.loss), size(site.uplink_bytes), size(site.downlink_bytes))
        rate = f"{size(site.rate)}/s" if site.rate else ""
        rest = _both(site.uplink_transport_bytes, site.downlink_transport_bytes)
        last = (_whole(site.merged_round), _whole(site.version))
        rows.append((escaped(site.site), waited, *last, *figures, rest, rate, str(site.examples), str(site.refused)))
    names = (
        "site",
        "awaited",
        "merged",
        "version",
        "accuracy",
        "loss",
        "up",
        "down",
        "transport",
        "rate",
        "examples",
        "refused",
    )
    return _table(names, rows)


def _rounds(shown: Snapshot) -> Table:
    rows = []
    for row in shown.history[-LAST_ROUNDS:]:
        counts = (f"{row.merged}/{row.asked}", str(row.late), str(row.refused))
        rest = _both(row.uplink_transport_bytes, row.downlink_transport_bytes)
        sizes = (size(row.uplink_bytes), size(row.downlink_bytes), rest, f"{row.seconds:.1f}")
        rows.append((str(row.round), *counts, *sizes, _figure(row.accuracy), _figure(row.loss)))
    return _table(
        ("round", "merged", "late", "refused", "up", "down", "transport", "seconds", "accuracy", "loss"), rows
    )


def _quality(shown: Snapshot) -> list[str]:
    lines = []
    for name, first, values in (
        ("accuracy", shown.accuracy_start, [r.accuracy for r in shown.history if r.accuracy is not None]),
        ("loss", shown.loss_start, [r.loss for r in shown.history if r.loss is not None]),
    ):
        known = ([] if first is None else [first]) + values
        if known:
            lines.append(f"{name:<9}{sparkline(known)} {known[0]:.4f} -> {known[-1]:.4f}")
    return lines


def _bytes(shown: Snapshot) -> list[str]:
    lines = []
    for way, total in shown.totals.items():
        transport = "" if total.transport_bytes is None else f", {size(total.transport_bytes)} of transport"
        extra = f"and {size(total.protocol_bytes)} of protocol{transport}, in {total.messages} messages"
        lines.append(f"{way:<9}{size(total.payload_bytes)} {extra}")
    if shown.baselines:
        ratios = ", ".join(f"{row.ratio:.1f} x fewer than {dtype}" for dtype, row in shown.baselines.items())
        lines.append(f"{'bytes':<9}{ratios}")
    return lines


def _refused(shown: Snapshot) -> list[str]:
    last = [(r, escaped(r.site) or f"node {r.node}") for r in shown.refusals[:LAST_REFUSALS]]
    return [f"refused {ago(r.at)}, round {r.round}: {who}: {escaped(f'{r.code}: {r.message}')}" for r, who in last]


def _both(up: int | None, down: int | None) -> str:
    return "" if up is None or down is None else size(up + down)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _whole(value: int | None) -> str:
    return "" if value is None else str(value)


def show(look: Callable[[], Snapshot], *, once: bool, sleep: Callable[[float], None] = time.sleep) -> None:
    """Print a snapshot, once or until the run has ended or Ctrl-C; without a terminal, whenever a round ends."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    shown = look()
    if once:
        console.print(render(shown))
        return
    if not console.is_terminal:
        _follow_plainly(console.print, shown, look, sleep)
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(render(shown), refresh=True)
            if shown.state in ENDED:
                return
            sleep(LOOK)
            shown = look()


def _follow_plainly(
    write: Callable[[Group], None], shown: Snapshot, look: Callable[[], Snapshot], sleep: Callable[[float], None]
) -> None:
    said: tuple[str, int] | None = None
    while True:
        if said != (now := (shown.state if shown.state not in WORKING else "", shown.rounds_done)):
            write(render(shown))
            sys.stdout.flush()
            said = now
        if shown.state in ENDED:
            return
        sleep(LOOK)
        shown = look()
