"""``fedcompress codecs``, ``rules``, ``optimizers``, ``adapters``: the literal tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
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
    out = []
    for name, row in table.items():
        entry: dict[str, Any] = {"name": name}
        for field in fields(row):
            value = getattr(row, field.name)
            if field.name == "config":
                known = fields(value) if value is not None and is_dataclass(value) else ()
                entry["parameters"] = {f.name: "required" if f.default is _missing() else f.default for f in known}
            elif field.name == "call":
                entry["call"] = _call(value)
            elif value != "":
                entry[field.name] = value
        out.append(entry)
    return out


def _call(function: Callable[..., Any]) -> str:
    """How a function is called: its package, name and parameters, without types."""
    arguments = (str(p.replace(annotation=p.empty)) for p in signature(function).parameters.values())
    return f"{function.__module__.rpartition('.')[0]}.{function.__name__}({', '.join(arguments)})"


def _missing() -> object:
    from dataclasses import MISSING

    return MISSING


def _show(table: Mapping[str, Any], as_json: bool) -> None:
    _print(_rows(table), as_json)


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
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
                console.print(f"  {key:<12} {text}", markup=False, highlight=False, soft_wrap=True)


def codecs(as_json: Json = False) -> None:
    """Codec stages and presets: parameters, law, paper.

    Examples:
      fedcompress codecs
      fedcompress codecs --json
    """
    from fedcompress.codecs import CODECS

    _show(CODECS, as_json)


def rules(as_json: Json = False) -> None:
    """Merge rules, rules that need data, server optimizers and weightings: parameters, law, memory, identity, paper.

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
    """Local optimizers: parameters, state, placement, law, paper.

    ``state_bytes`` are for each parameter of a 1024 x 1024 matrix, with the parameters of the rule as they stand.
    """
    from fedcompress.optim import OPTIMIZERS
    from fedcompress.optim.table import state_bytes

    rows = []
    for row in _rows(OPTIMIZERS):
        rule = OPTIMIZERS[row["name"]].config()
        each = round(state_bytes(rule, (1024, 1024)) / 1024**2, 3)
        rows.append({**row, "placement": rule.placement, "state_bytes": each})
    _print(rows, as_json)


def adapters(as_json: Json = False) -> None:
    """Adapters by name: PEFT type, how updates are merged, paper, where the start is from, settings.

    Those of PEFT that are refused are listed at the end, with the reason.

    Examples:
      fedcompress adapters
      fedcompress adapters --json
    """
    from fedcompress.adapters import ADAPTERS
    from fedcompress.adapters.table import REFUSED

    _print([*_rows(ADAPTERS), *({"name": n, "merge": "refused", "note": why} for n, why in REFUSED.items())], as_json)
