"""The page is a snapshot as HTML. Its only script fetches the page again and takes over the content."""

from __future__ import annotations

import base64
import hashlib
import math
import time
from collections.abc import Sequence

from fedcompress.formatting import duration, size
from server.ledger.reader import RoundRow
from server.watch.chart import Line, Point, draw_legend, line_chart
from server.watch.html import Html, element, escape_html, join_html
from server.watch.view import SiteView, Snapshot, Total

LAST_ROUNDS = 200  # rounds that the table shows

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6875; --line: #d9dee5; --ground: #f5f7f9; --card: #fff;
  --own: #1764ab; --bf16: #c23b22; --fp32: #7b4fa3; --int8: #b7791f; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa5b3; --line: #343c47; --ground: #14181d;
  --card: #1d232a; --own: #6fb1ee; --bf16: #f08a75; --fp32: #bf9be0; --int8: #e0b05c; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 14px/1.45 system-ui, sans-serif; }
main { max-width: 1360px; margin: 0 auto; padding: 16px; }
h1 { font-size: 20px; margin: 0 8px 0 0; display: inline; } h2 { font-size: 15px; margin: 0 0 8px; }
.state { border-radius: 10px; padding: 2px 10px; color: #fff; background: var(--own); font-weight: 600; }
.state.finished { background: #1f7a4d; } .state.failed, .state.interrupted { background: #b3261e; }
.soft, .legend, .empty { color: var(--soft); } .bad { color: var(--bad); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; margin: 14px 0; }
.card, section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; }
.card b { display: block; font-size: 20px; } section { margin-bottom: 14px; overflow-x: auto; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(360px, 1fr)); gap: 14px; }
progress { width: 100%; height: 10px; accent-color: var(--own); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 500; } th, td { padding: 3px 10px 3px 0; white-space: nowrap; }
td { border-top: 1px solid var(--line); } .number { text-align: right; } td.text { white-space: normal; }
.tall { max-height: 340px; overflow-y: auto; }
.chart { width: 100%; height: auto; } .chart text { font: 11px system-ui, sans-serif; fill: var(--soft); }
.grid { stroke: var(--line); } .frame { stroke: var(--soft); fill: none; } .legend span { margin-right: 14px; }
.chart polyline { fill: none; stroke-width: 2; } .key { display: inline-block; width: 10px; height: 10px; }
.own polyline { stroke: var(--own); } .own circle { fill: var(--own); } .key.own { background: var(--own); }
.up polyline { stroke: var(--own); } .up circle { fill: var(--own); } .key.up { background: var(--own); }
.down polyline { stroke: var(--int8); } .down circle { fill: var(--int8); } .key.down { background: var(--int8); }
.bf16 circle { fill: var(--bf16); } .key.bf16 { background: var(--bf16); }
.fp32 circle { fill: var(--fp32); } .key.fp32 { background: var(--fp32); }
.int8 circle { fill: var(--int8); } .key.int8 { background: var(--int8); }
#lost { display: none; background: #b3261e; color: #fff; padding: 6px 16px; } body.lost #lost { display: block; }
"""

SCRIPT = """
"use strict";
async function look() {
  if (!document.hidden) {
    try {
      const reply = await fetch(location.href, { cache: "no-store" });
      if (!reply.ok) throw new Error(reply.status);
      const page = new DOMParser().parseFromString(await reply.text(), "text/html");
      const places = [...document.querySelectorAll(".tall")].map((part) => part.scrollTop);
      document.querySelector("main").replaceWith(page.querySelector("main"));
      document.querySelectorAll(".tall").forEach((part, i) => { part.scrollTop = places[i] || 0; });
      document.title = page.title;
      document.body.classList.remove("lost");
    } catch (error) {
      document.body.classList.add("lost");
    }
  }
  setTimeout(look, 2000);
}
setTimeout(look, 2000);
"""


def _hash_source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# Content-Security-Policy: nothing but this very style and script, and nothing from elsewhere.
POLICY = (
    f"default-src 'none'; style-src {_hash_source(STYLE)}; script-src {_hash_source(SCRIPT)}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def render(snapshot: Snapshot) -> str:
    """Render the whole page."""
    body = element(
        "main",
        _render_head(snapshot),
        _render_cards(snapshot),
        _render_charts(snapshot),
        _render_sites(snapshot),
        _render_rounds(snapshot),
        _render_refusals(snapshot),
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape_html(snapshot.run)}: {escape_html(snapshot.state)}</title><style>{STYLE}</style></head>"
        f'<body><div id="lost">No connection: what is shown is old.</div>{body}<script>{SCRIPT}</script></body></html>'
    )


def _render_head(shown: Snapshot) -> Html:
    parts: list[object] = [
        element("h1", f"fedcompress: {shown.run}"),
        element("span", shown.state, class_=_state_style(shown)),
    ]
    planned = f" of {shown.rounds}" if shown.rounds else ""
    line = f" {shown.rounds_done}{planned} rounds are done."
    if shown.round and shown.state != "evaluating":
        line += f" Round {shown.round}: {shown.answered} of {shown.answered + len(shown.awaited)} have answered."
    parts.append(line)
    if shown.awaited and shown.since is not None and shown.until is not None:
        names = ", ".join(a.site or f"node {a.node}" for a in shown.awaited[:20])
        more = f" and {len(shown.awaited) - 20} more" if len(shown.awaited) > 20 else ""
        waited, left = duration(max(0.0, shown.at - shown.since)), duration(max(0.0, shown.until - shown.at))
        parts.append(element("p", f"Awaited for {waited}, for {left} more: {names}{more}"))
    if shown.error:
        parts.append(element("p", shown.error, class_="bad"))
    if shown.rounds:
        parts.append(element("progress", value=shown.rounds_done, max=shown.rounds))
    return element("header", *parts)


def _state_style(shown: Snapshot) -> str:
    return f"state {shown.state}"


def _render_cards(shown: Snapshot) -> Html:
    up, down = shown.totals["up"], shown.totals["down"]
    entries = [
        ("accuracy", _format_figure(shown.accuracy), f"start {_format_figure(shown.accuracy_start)}"),
        ("loss", _format_figure(shown.loss), f"start {_format_figure(shown.loss_start)}"),
        ("sent up", size(up.payload_bytes), f"{up.messages} messages, {_format_besides(up)}"),
        ("sent down", size(down.payload_bytes), f"{down.messages} messages, {_format_besides(down)}"),
    ]
    for dtype, row in shown.baselines.items():
        both = f"up {row.uplink_ratio:.1f} x, down {row.downlink_ratio:.1f} x"
        entries.append((f"fewer bytes than {dtype}", f"{row.ratio:.1f} x", both))
    cards = [
        element("div", name, element("b", value), element("span", note, class_="soft"), class_="card")
        for name, value, note in entries
    ]
    return element("div", *cards, class_="cards")


def _format_besides(total: Total) -> str:
    transport = "" if total.transport_bytes is None else f", +{size(total.transport_bytes)} transport"
    return f"+{size(total.protocol_bytes)} protocol{transport}"


def _render_charts(shown: Snapshot) -> Html:
    start = [] if shown.loss_start is None else [Point(x=0, y=shown.loss_start, label=f"start: {shown.loss_start:.4f}")]
    losses = start + [_point_of_round(r, r.loss, f"{r.loss:.4f}") for r in shown.history if r.loss is not None]
    loss = Line(name="loss", style="own", points=losses)
    sent_up = [_point_of_round(r, r.uplink_bytes, size(r.uplink_bytes)) for r in shown.history]
    sent_down = [_point_of_round(r, r.downlink_bytes, size(r.downlink_bytes)) for r in shown.history]
    ways = [Line(name="up", style="up", points=sent_up), Line(name="down", style="down", points=sent_down)]
    by_loss = line_chart(
        [loss],
        title="Loss by round",
        x_name="round",
        y_name="loss",
        x_text=_format_plain,
        y_text=_format_plain,
    )
    sent = line_chart(
        ways,
        title="Bytes by round",
        x_name="round",
        y_name="bytes",
        x_text=_format_plain,
        y_text=_format_bytes,
    )
    return element(
        "div",
        element("section", element("h2", "Accuracy against bytes"), *_draw_accuracy_by_bytes(shown)),
        element("section", element("h2", "Loss by round"), by_loss),
        element("section", element("h2", "Bytes by round"), sent, draw_legend(ways)),
        class_="charts",
    )


def _draw_accuracy_by_bytes(shown: Snapshot) -> tuple[Html, Html]:
    """Draw what was measured, and where the same messages would stand uncompressed, at the accuracy of now."""
    sent_bytes = 0.0
    measured = []
    for row in shown.history:
        sent_bytes += row.uplink_bytes + row.downlink_bytes
        if row.accuracy is not None:
            label = f"round {row.round}: {row.accuracy:.4f}, {size(sent_bytes)}"
            measured.append(Point(x=sent_bytes, y=row.accuracy, label=label))
    lines = [Line(name="measured, by round", style="own", points=measured)]
    for dtype, base in shown.baselines.items():
        total = base.uplink_bytes + base.downlink_bytes
        label = f"the same messages in {dtype}: {size(total)}, {base.ratio:.1f} times as many bytes"
        mark = [Point(x=total, y=shown.accuracy, label=label)] if shown.accuracy is not None and measured else []
        lines.append(Line(name=dtype, style=dtype, points=mark, marks=True))
    chart = line_chart(
        lines,
        title="Accuracy against bytes",
        x_name="payload so far, both ways; dots: the same messages uncompressed",
        y_name="accuracy",
        x_text=_format_bytes,
        y_text=_format_plain,
        log_x=True,
    )
    return chart, draw_legend(lines)


def _point_of_round(row: RoundRow, value: float, text: str) -> Point:
    return Point(x=row.round, y=value, label=f"round {row.round}: {text}")


def _format_plain(value: float) -> str:
    return f"{value:.4g}"


def _format_bytes(count: float) -> str:
    """Format the bytes at a tick, in powers of ten."""
    power = min(4, max(0, math.floor(math.log10(max(count, 1)) / 3 + 1e-9)))
    return f"{count / 1000**power:g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _render_sites(shown: Snapshot) -> Html:
    sent = ("up", "down", "transport", "rate")
    names = ("site", "state", "merged", "version", "accuracy", "alone", "loss", *sent, "examples", "refused")
    rows = [_site_cells(row, shown.at) for row in shown.sites]
    return element("section", element("h2", f"Sites ({len(rows)})"), _render_table(names, rows, 2))


def _site_cells(row: SiteView, now: float) -> Sequence[object]:
    waited = "" if row.awaited_since is None else f"awaited for {duration(max(0.0, now - row.awaited_since))}"
    return (
        row.site,
        waited,
        _format_whole(row.merged_round),
        _format_whole(row.version),
        _format_figure(row.accuracy),
        _format_figure(row.alone),
        _format_figure(row.loss),
        size(row.uplink_bytes),
        size(row.downlink_bytes),
        _format_sum(row.uplink_transport_bytes, row.downlink_transport_bytes),
        f"{size(row.rate)}/s" if row.rate else "",
        row.examples,
        row.refused,
    )


def _render_rounds(shown: Snapshot) -> Html:
    counted = ("asked", "merged", "late", "refused", "up", "down", "transport")
    names = ("round", "at (UTC)", *counted, "seconds", "accuracy", "loss")
    rows = [_round_cells(row) for row in reversed(shown.history[-LAST_ROUNDS:])]
    more = f", the last {LAST_ROUNDS} of {len(shown.history)}" if len(shown.history) > LAST_ROUNDS else ""
    table = element("div", _render_table(names, rows, 2), class_="tall")
    return element("section", element("h2", f"Rounds{more}"), table)


def _round_cells(row: RoundRow) -> Sequence[object]:
    return (
        row.round,
        _format_time(row.at),
        row.asked,
        row.merged,
        row.late,
        row.refused,
        size(row.uplink_bytes),
        size(row.downlink_bytes),
        _format_sum(row.uplink_transport_bytes, row.downlink_transport_bytes),
        f"{row.seconds:.1f}",
        _format_figure(row.accuracy),
        _format_figure(row.loss),
    )


def _render_refusals(shown: Snapshot) -> Html:
    codes = ", ".join(f"{code} {count}" for code, count in shown.refused_by_code.items())
    rows = [(_format_time(r.at), r.round, r.site or f"node {r.node}", r.code, r.message) for r in shown.refusals]
    table = (
        _render_table(("at (UTC)", "round", "site", "code", "message"), rows, 9)
        if rows
        else element("p", "None", class_="empty")
    )
    heading = element("h2", f"Refused ({shown.refused})")
    return element(
        "section", heading, element("p", codes, class_="soft") if codes else "", element("div", table, class_="tall")
    )


def _render_table(names: Sequence[str], rows: Sequence[Sequence[object]], numbers_from: int) -> Html:
    def style(i: int) -> str:
        return "number" if i >= numbers_from else "text"

    head = element("tr", *(element("th", name, class_=style(i)) for i, name in enumerate(names)))
    body = [element("tr", *(element("td", cell, class_=style(i)) for i, cell in enumerate(row))) for row in rows]
    return element("table", element("thead", head), element("tbody", join_html(*body)))


def _format_figure(value: float | None) -> str:
    return "..." if value is None else f"{value:.4f}"


def _format_sum(up: int | None, down: int | None) -> str:
    return "" if up is None or down is None else size(up + down)


def _format_whole(value: int | None) -> str:
    return "" if value is None else str(value)


def _format_time(at: float) -> str:
    return time.strftime("%m-%d %H:%M:%S", time.gmtime(at))
