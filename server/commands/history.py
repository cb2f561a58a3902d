"""``fedcompress history`` prints the rounds of a run, its sites, both at once, or what was refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedcompress.errors import ConfigError
from fedcompress.fitted_table import FittedTable
from fedcompress.formatting import ago
from fedcompress.traffic.accounting import BASELINES
from server.ledger.reader import LedgerReader
from server.runs import find_run

WIDTH = 200  # columns of a table that is not for a terminal
# Heads of the columns of ``_format_sizes``.
SIZES = ("bytes up", "bytes down", "protocol up", "protocol down", "transport up", "transport down")
# Heads of columns that are left out on a narrow terminal, the first first.
LEAST_IMPORTANT = (
    *reversed(SIZES[2:]),
    *(f"as {d}" for d in reversed(BASELINES)),
    "late",
    "asked",
    "seconds",
    "version",
)
WORDS = ("site", "code", "message", "when", "last reply")  # heads of columns with texts
NEVER_ADMITTED = "(never admitted)"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options that can be set on the command line."""

    state: str
    run_name: str = ""
    sites: bool = False
    site_rounds: bool = False
    refusals: bool = False
    as_json: bool = False

    def __post_init__(self) -> None:
        flags = {"--sites": self.sites, "--site-rounds": self.site_rounds, "--refusals": self.refusals}
        chosen = [flag for flag, is_set in flags.items() if is_set]
        if len(chosen) > 1:
            raise ConfigError(chosen[0], True, f"cannot go with {chosen[1]}: choose one")


def run(options: Options) -> int:
    """Print a table, or JSON.

    Raises:
        ConfigError: there is no such state directory or run.
    """
    folder, name = find_run(options.state, options.run_name)
    with LedgerReader(folder) as reader:
        kind, entries = _read_entries(reader, name, options)
        start = dict(reader.quality(name)).get(0)
        document = {
            "run": name,
            kind: entries,
            "start": asdict(start) if start else None,
            "bytes": reader.payload_bytes(name),
            "protocol": reader.protocol_bytes(name),
            "transport": reader.transport_bytes(name),
            "baseline_bytes": reader.baseline_bytes(name),
        }
    if options.as_json:
        print(json.dumps(document))
        return 0
    heads, rows = _TABLES[kind](entries)
    _print_table(f"{name}: {kind.replace('_', ' ')}", heads, rows)
    return 0


def _read_entries(reader: LedgerReader, name: str, options: Options) -> tuple[str, list[dict[str, Any]]]:
    """Return the kind of entries that the options ask for, and these entries as JSON has them."""
    if options.sites:
        return "sites", [asdict(row) for row in reader.sites(name)]
    if options.site_rounds:
        return "site_rounds", [asdict(row) for row in reader.site_rounds(name)]
    if options.refusals:
        return "refusals", reader.refusals(name)
    return "rounds", [asdict(row) for row in reader.rounds(name)]


def _format_sizes(row: dict[str, Any]) -> list[str]:
    names = [f"{way}_{kind}bytes" for kind in ("", "protocol_", "transport_") for way in ("uplink", "downlink")]
    return ["" if row[name] is None else f"{row[name]:,}" for name in names]


def _tabulate_rounds(entries: list[dict[str, Any]]) -> tuple[Sequence[str], list[list[str]]]:
    counted = ("round", "version", "asked", "merged", "late", "refused")
    rows = []
    for row in entries:
        quality = row["quality"]
        measured = [f"{quality[k]:.4f}" for k in ("accuracy", "loss")] if quality else ["...", "..."]
        rows.append([*(str(row[k]) for k in counted), *_format_sizes(row), f"{row['seconds']:.1f}", *measured])
    return (*counted, *SIZES, "seconds", "accuracy", "loss"), rows


def _tabulate_sites(entries: list[dict[str, Any]]) -> tuple[Sequence[str], list[list[str]]]:
    rows = []
    for row in entries:
        holds = "nothing" if row["acked"] is None else str(row["acked"])
        last = ago(row["last_at"]) if row["last_at"] else "never"
        rows.append([row["site"], holds, str(row["messages"]), *_format_sizes(row), str(row["refused"]), last])
    return ("site", "holds version", "messages", *SIZES, "refused", "last reply"), rows


def _tabulate_site_rounds(entries: list[dict[str, Any]]) -> tuple[Sequence[str], list[list[str]]]:
    rows = []
    for row in entries:
        plain = [f"{sum(row['baseline_bytes'].get(dtype, {}).values()):,}" for dtype in BASELINES]
        rows.append([str(row["round"]), row["site"] or NEVER_ADMITTED, *_format_sizes(row), *plain])
    return ("round", "site", *SIZES, *(f"as {dtype}" for dtype in BASELINES)), rows


def _tabulate_refusals(entries: list[dict[str, Any]]) -> tuple[Sequence[str], list[list[str]]]:
    rows = [[str(r["round"]), r["site"] or f"node {r['node']}", r["code"], r["message"], ago(r["at"])] for r in entries]
    return ("round", "site", "code", "message", "when"), rows


_TABLES = {
    "rounds": _tabulate_rounds,
    "sites": _tabulate_sites,
    "site_rounds": _tabulate_site_rounds,
    "refusals": _tabulate_refusals,
}


def _print_table(title: str, heads: Sequence[str], rows: list[list[str]]) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(FittedTable(names=heads, rows=rows, dropped=LEAST_IMPORTANT, folded=WORDS, title=title))
