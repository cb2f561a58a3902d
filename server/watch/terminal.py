"""A snapshot is shown on a terminal: where the run is, its sites, bytes and quality; live, or once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fedcompress.fitted_table import FittedTable
from fedcompress.formatting import ago, duration, escaped, size
from server.events import EXPORTED
from server.watch.view import WORKING, Snapshot

if TYPE_CHECKING:
    from rich.console import Group

LOOK = 1.0  # seconds between two looks at the run
BLOCKS = "▁▂▃▄▅▆▇█"  # heights of a sparkline
SPARKS = 60  # columns of a sparkline
LAST_REFUSALS = 5  # refusals that are shown
LAST_ROUNDS = 8  # rounds that are shown
PLAIN_WIDTH = 140  # columns where there is no terminal
# Heads of columns that are left out on a narrow terminal, the first first.
LEAST_IMPORTANT = ("transport", "rate", "examples", "late", "version", "down", "seconds", "alone", "refused", "loss")


def sparkline(values: Sequence[float], width: int = SPARKS) -> str:
    """Draw the last ``width`` numbers as blocks, from their least to their largest.

    Examples:
        >>> sparkline([0.0, 1.0, 0.5])
        '▁█▅'
    """
    shown = values[-width:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    span = (high - low) or 1.0
    return "".join(BLOCKS[round((v - low) / span * (len(BLOCKS) - 1))] for v in shown)


def render(shown: Snapshot) -> Group:
    """Render a snapshot for a terminal: all that fits a screen."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    parts: list[object] = [Text(line) for line in _format_head(shown)]
    if shown.state in WORKING and shown.awaited:
        asked = shown.answered + len(shown.awaited)
        parts.append(ProgressBar(total=asked, completed=shown.answered, width=SPARKS))
    parts += [Text(), _tabulate_sites(shown), Text(), _tabulate_rounds(shown), Text()]
    parts += [Text(line) for line in _format_quality(shown) + _format_bytes(shown)]
    parts += [Text(line, style="yellow") for line in _format_refusals(shown)]
    return Group(*parts)  # type: ignore[arg-type]


def _format_head(shown: Snapshot) -> list[str]:
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


def _tabulate_sites(shown: Snapshot) -> FittedTable:
    sent = ("up", "down", "transport", "rate")
    names = ("site", "awaited", "merged", "version", "accuracy", "alone", "loss", *sent, "examples", "refused")
    rows = []
    for site in shown.sites:
        waited = "" if site.awaited_since is None else duration(max(0.0, shown.at - site.awaited_since))
        cells = (
            site.site,
            waited,
            _format_whole(site.merged_round),
            _format_whole(site.version),
            _format_figure(site.accuracy),
            _format_figure(site.alone),
            _format_figure(site.loss),
            size(site.uplink_bytes),
            size(site.downlink_bytes),
            _format_sum(site.uplink_transport_bytes, site.downlink_transport_bytes),
            f"{size(site.rate)}/s" if site.rate else "",
            str(site.examples),
            str(site.refused),
        )
        rows.append(cells)
    return FittedTable(names=names, rows=rows, dropped=LEAST_IMPORTANT, folded=names[:1])


def _tabulate_rounds(shown: Snapshot) -> FittedTable:
    names = ("round", "merged", "late", "refused", "up", "down", "transport", "seconds", "accuracy", "loss")
    rows = []
    for row in shown.history[-LAST_ROUNDS:]:
        cells = (
            str(row.round),
            f"{row.merged}/{row.asked}",
            str(row.late),
            str(row.refused),
            size(row.uplink_bytes),
            size(row.downlink_bytes),
            _format_sum(row.uplink_transport_bytes, row.downlink_transport_bytes),
            f"{row.seconds:.1f}",
            _format_figure(row.accuracy),
            _format_figure(row.loss),
        )
        rows.append(cells)
    return FittedTable(names=names, rows=rows, dropped=LEAST_IMPORTANT, folded=names[:1])


def _format_quality(shown: Snapshot) -> list[str]:
    lines = []
    for name, first, values in (
        ("accuracy", shown.accuracy_start, [r.accuracy for r in shown.history if r.accuracy is not None]),
        ("loss", shown.loss_start, [r.loss for r in shown.history if r.loss is not None]),
    ):
        known = ([] if first is None else [first]) + values
        if known:
            lines.append(f"{name:<9}{sparkline(known)} {known[0]:.4f} -> {known[-1]:.4f}")
    return lines


def _format_bytes(shown: Snapshot) -> list[str]:
    lines = []
    for way, total in shown.totals.items():
        transport = "" if total.transport_bytes is None else f", {size(total.transport_bytes)} of transport"
        extra = f"and {size(total.protocol_bytes)} of protocol{transport}, in {total.messages} messages"
        lines.append(f"{way:<9}{size(total.payload_bytes)} {extra}")
    if shown.baselines:
        ratios = ", ".join(f"{row.ratio:.1f} x fewer than {dtype}" for dtype, row in shown.baselines.items())
        lines.append(f"{'bytes':<9}{ratios}")
    return lines


def _format_refusals(shown: Snapshot) -> list[str]:
    last = [(r, escaped(r.site) or f"node {r.node}") for r in shown.refusals[:LAST_REFUSALS]]
    return [f"refused {ago(r.at)}, round {r.round}: {who}: {escaped(f'{r.code}: {r.message}')}" for r, who in last]


def _format_sum(up: int | None, down: int | None) -> str:
    return "" if up is None or down is None else size(up + down)


def _format_figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _format_whole(value: int | None) -> str:
    return "" if value is None else str(value)


def show(look: Callable[[], Snapshot], *, once: bool, sleep: Callable[[float], None] = time.sleep) -> None:
    """Print snapshots until the run has ended or Ctrl-C; without a terminal, whenever a round ends.

    Args:
        look: takes a snapshot.
        once: whether to print one snapshot only.
        sleep: waits so many seconds.
    """
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
            if shown.state in EXPORTED:
                return
            sleep(LOOK)
            shown = look()


def _follow_plainly(
    write: Callable[[Group], None], shown: Snapshot, look: Callable[[], Snapshot], sleep: Callable[[float], None]
) -> None:
    """Print a snapshot whenever a round has ended or the run has stopped to work."""
    printed: tuple[str, int] | None = None
    while True:
        progress = (shown.state if shown.state not in WORKING else "", shown.rounds_done)
        if progress != printed:
            write(render(shown))
            sys.stdout.flush()
            printed = progress
        if shown.state in EXPORTED:
            return
        sleep(LOOK)
        shown = look()
