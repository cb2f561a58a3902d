"""``fedcompress history``: the rounds of a run, its sites, or what was refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedcompress.display import ago, escaped
from fedcompress.errors import ConfigError
from server.commands.common import run_named, state_folder
from server.history import History

WIDTH = 200  # columns of a table that is not for a terminal
TRANSPORT = ("transport up", "transport down")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What can be set from the command line."""

    state: str
    run_name: str = ""
    sites: bool = False
    refusals: bool = False
    as_json: bool = False

    def __post_init__(self) -> None:
        if self.sites and self.refusals:
            raise ConfigError("--sites", True, "cannot go with --refusals: choose one")


def run(options: Options) -> int:
    """Print a table, or JSON.

    Raises:
        ConfigError: there is no such state directory or run.
    """
    folder = state_folder(options.state)
    name = run_named(folder, options.run_name)
    with History(folder) as history:
        if options.sites:
            kind, found = "sites", [asdict(row) for row in history.sites(name)]
        elif options.refusals:
            kind, found = "refusals", history.refusals(name)
        else:
            kind, found = "rounds", [asdict(row) for row in history.rounds(name)]
        start = dict(history.quality(name)).get(0)
        totals = history.payload_bytes(name)
        more = {"protocol": history.protocol_bytes(name), "transport": history.transport_bytes(name)}
    if options.as_json:
        facts = {"run": name, kind: found, "start": asdict(start) if start else None, "bytes": totals, **more}
        print(json.dumps(facts))
        return 0
    heads, rows = _TABLES[kind](found)
    _print_table(f"{name}: {kind}", heads, rows)
    return 0


def _transport(row: dict[str, Any]) -> list[str]:
    found = (row["uplink_transport_bytes"], row["downlink_transport_bytes"])
    return ["" if value is None else f"{value:,}" for value in found]


def _rounds(found: list[dict[str, Any]]) -> tuple[Sequence[str], list[list[str]]]:
    counted = ("round", "version", "asked", "merged", "late", "refused")
    heads = (*counted, "bytes up", "bytes down", "protocol", *TRANSPORT, "seconds", "accuracy", "loss")
    rows = []
    for row in found:
        quality = row["quality"]
        measured = [f"{quality[k]:.4f}" for k in ("accuracy", "loss")] if quality else ["...", "..."]
        sizes = [f"{row[k]:,}" for k in ("uplink_bytes", "downlink_bytes", "protocol_bytes")] + _transport(row)
        rows.append([*(str(row[k]) for k in counted), *sizes, f"{row['seconds']:.1f}", *measured])
    return heads, rows


def _sites(found: list[dict[str, Any]]) -> tuple[Sequence[str], list[list[str]]]:
    heads = ("site", "holds version", "messages", "bytes up", "bytes down", *TRANSPORT, "refused", "last reply")
    rows = []
    for row in found:
        holds = "nothing" if row["acked"] is None else str(row["acked"])
        sizes = [f"{row[k]:,}" for k in ("uplink_bytes", "downlink_bytes")] + _transport(row)
        last = ago(row["last_at"]) if row["last_at"] else "never"
        rows.append([row["site"], holds, str(row["messages"]), *sizes, str(row["refused"]), last])
    return heads, rows


def _refusals(found: list[dict[str, Any]]) -> tuple[Sequence[str], list[list[str]]]:
    rows = [[str(r["round"]), r["site"] or f"node {r['node']}", r["code"], r["message"], ago(r["at"])] for r in found]
    return ("round", "site", "code", "message", "when"), rows


_TABLES = {"rounds": _rounds, "sites": _sites, "refusals": _refusals}


def _print_table(title: str, heads: Sequence[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    table = Table(title=title, title_justify="left")
    words = ("site", "code", "message", "when", "last reply")
    for head in heads:
        table.add_column(head, justify="left" if head in words else "right")
    for row in rows:
        table.add_row(*(Text(escaped(cell)) for cell in row))
    console.print(table)
