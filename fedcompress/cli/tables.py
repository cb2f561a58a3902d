"""``fedcompress codecs``, ``rules``, ``optimizers`` and ``adapters`` print the tables of methods."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from inspect import signature
from typing import Annotated, Any

import typer

from fedcompress.cli.help import LOOKUP_SECTION, App

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def register(app: App) -> None:
    """Add the commands to the app."""
    app.add(codecs, section=LOOKUP_SECTION)
    app.add(rules, section=LOOKUP_SECTION)
    app.add(optimizers, section=LOOKUP_SECTION)
    app.add(adapters, section=LOOKUP_SECTION)


def _rows(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a table as JSON knows them: a config as its parameters, a function as its call."""
    entries = []
    for name, row in table.items():
        entry: dict[str, Any] = {"name": name}
        for field in fields(row):
            value = getattr(row, field.name)
            if field.name == "config":
                parameters = fields(value) if value is not None and is_dataclass(value) else ()
                entry["parameters"] = {p.name: "required" if p.default is MISSING else p.default for p in parameters}
            elif field.name == "call":
                entry["call"] = _format_function(value)
            elif value != "":
                entry[field.name] = value
        entries.append(entry)
    return entries


def _format_function(function: Callable[..., Any]) -> str:
    """Return how a function is called: its package, name and parameters, without types."""
    arguments = (str(p.replace(annotation=p.empty)) for p in signature(function).parameters.values())
    return f"{function.__module__.rpartition('.')[0]}.{function.__name__}({', '.join(arguments)})"


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print rows as JSON, or as paragraphs with a line for each field."""
    if as_json:
        print(json.dumps(rows))
        return
    from rich.console import Console

    console = Console()
    for row in rows:
        console.print(f"[bold]{row.pop('name')}[/bold]", highlight=False)
        for key, value in row.items():
            text = value
            if isinstance(value, dict):
                text = ", ".join(f"{name}={default}" for name, default in value.items())
            if text != "":
                console.print(f"  {key:<12} {text}", markup=False, highlight=False, soft_wrap=True)


def codecs(as_json: Json = False) -> None:
    """List codec stages and presets: parameters, law, paper.

    Examples:
      fedcompress codecs
      fedcompress codecs --json
    """
    from fedcompress.codecs import CODECS

    _print(_rows(CODECS), as_json)


def rules(as_json: Json = False) -> None:
    """List merge rules, rules that need data, server optimizers, weightings: parameters, law, memory, identity, paper.

    ``kind`` says which: elementwise and lora are merge rules (``rule``), data are functions of the library,
    outer is for ``server-optimizer``, weighting for ``weighting``.
    """
    from fedcompress.merging import RULES, SERVER_OPTIMIZERS, WEIGHTINGS
    from fedcompress.merging.data_driven import DATA_RULES

    rows = _rows(RULES)
    for kind, table in (("data", DATA_RULES), ("outer", SERVER_OPTIMIZERS), ("weighting", WEIGHTINGS)):
        rows += [{**row, "kind": kind} for row in _rows(table)]
    _print(rows, as_json)


def optimizers(as_json: Json = False) -> None:
    """List local optimizers: parameters, state, placement, law, paper.

    ``state_bytes`` are for each parameter of a 1024 x 1024 matrix, with the parameters of the rule as they stand.
    """
    from fedcompress.optim import OPTIMIZERS
    from fedcompress.optim.table import state_bytes

    rows = []
    for row in _rows(OPTIMIZERS):
        rule = OPTIMIZERS[row["name"]].config()
        per_parameter = round(state_bytes(rule, (1024, 1024)) / 1024**2, 3)
        rows.append({**row, "placement": rule.placement, "state_bytes": per_parameter})
    _print(rows, as_json)


def adapters(as_json: Json = False) -> None:
    """List adapters by name: PEFT type, how updates are merged, paper, where the start is from, settings.

    Those of PEFT that are refused are listed at the end, with the reason.

    Examples:
      fedcompress adapters
      fedcompress adapters --json
    """
    from fedcompress.adapters import ADAPTERS
    from fedcompress.adapters.table import REFUSED

    refused = [{"name": name, "merge": "refused", "note": reason} for name, reason in REFUSED.items()]
    _print([*_rows(ADAPTERS), *refused], as_json)
