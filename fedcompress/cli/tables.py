"""``fedcompress codecs``, ``rules``, ``optimizers``, ``adapters``: the literal tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="codecs")(codecs)
    app.command(name="rules")(rules)
    app.command(name="optimizers")(optimizers)
    app.command(name="adapters")(adapters)


def _rows(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    out = []
    for name, row in table.items():
        entry: dict[str, Any] = {"name": name}
        for field in fields(row):
            value = getattr(row, field.name)
            if field.name == "config":
                known = fields(value) if value is not None and is_dataclass(value) else ()
                entry["parameters"] = {f.name: "required" if f.default is _missing() else f.default for f in known}
            elif value != "":
                entry[field.name] = value
        out.append(entry)
    return out


def _missing() -> object:
    from dataclasses import MISSING

    return MISSING


def _show(table: Mapping[str, Any], as_json: bool) -> None:
    rows = _rows(table)
    if as_json:
        print(json.dumps(rows))
        return
    from rich.console import Console

    console = Console()
    for row in rows:
        console.print(f"[bold]{row.pop('name')}[/bold]", highlight=False)
        for key, value in row.items():
            text = ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value
            if text != "":
                console.print(f"  {key:<12} {text}", markup=False, highlight=False)


def codecs(as_json: Json = False) -> None:
    """Codec stages and presets: parameters, law, paper.

    Examples:
      fedcompress codecs

      fedcompress codecs --json
    """
    from fedcompress.codecs import CODECS

    if as_json:
        _show(CODECS, as_json)
    else:
        _table(_rows(CODECS))


def _table(rows: list[dict[str, Any]]) -> None:
    """Codecs as a table as wide as the terminal; parameters without a default are written ``name=...``."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    longest = max(len(row["name"]) for row in rows)
    table.add_column("name", min_width=longest, no_wrap=True, style="bold")
    table.add_column("kind", no_wrap=True)
    table.add_column("parameters", ratio=2, overflow="fold")
    table.add_column("law", ratio=3)
    table.add_column("paper", ratio=3)
    for row in rows:
        known = row.get("parameters", {}).items()
        parameters = ", ".join(f"{k.rstrip('_')}={'...' if v == 'required' else v}" for k, v in known)
        table.add_row(row["name"], row["kind"], row.get("spec", parameters), row["law"], row["paper"])
    Console(markup=False, highlight=False).print(table)


def rules(as_json: Json = False) -> None:
    """Merge rules: parameters, law, memory, identity, paper."""
    from fedcompress.merging import RULES

    _show(RULES, as_json)


def optimizers(as_json: Json = False) -> None:
    """Local optimizers: state bytes per parameter, placement, paper."""
    from fedcompress.optim import OPTIMIZERS

    _show(OPTIMIZERS, as_json)


def adapters(as_json: Json = False) -> None:
    """PEFT types and the merge rule that fits them."""
    from fedcompress.adapters.groups import ADAPTERS

    _show(ADAPTERS, as_json)
