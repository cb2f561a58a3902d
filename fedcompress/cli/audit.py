"""``fedcompress audit`` checks whether the log of decisions is whole."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fedcompress.cli.help import RUN_SECTION, App


def register(app: App) -> None:
    """Add the group of commands to the app."""
    group = App(help="The coordinator's log of decisions: verify.")
    group.add(verify)
    app.add_group(group, "audit", section=RUN_SECTION)


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The coordinator's state directory.")],
    key: Annotated[
        Path | None, typer.Option(help="The coordinator's public key; coordinator.pub in DIR if not given.")
    ] = None,
    kept: Annotated[str, typer.Option(help="Head that an earlier verify printed: it must still be in the log.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check the chain of the log and its head; exit 1 and name the first bad line if it was changed.

    A log that was taken back as a whole, with its head, is found by --kept only: note the head now and then.

    Examples:
      fedcompress audit verify coordinator-state
      fedcompress audit verify coordinator-state --key coordinator.pub --kept 8d1f... --json
    """
    from fedcompress.identity import PublicKey
    from fedcompress.identity.audit import verify as check
    from fedcompress.identity.registry import COORDINATOR

    path = key
    if path is None and (folder / f"{COORDINATOR}.pub").is_file():
        path = folder / f"{COORDINATOR}.pub"
    public = PublicKey.load(path, field="--key") if path is not None else None
    report = check(folder, public, kept=kept)
    if as_json:
        print(json.dumps(asdict(report)))
    elif report.ok:
        signed = "signed" if report.signed else "not signed"
        print(f"{folder}: {report.lines} lines are whole, head {report.head}, {signed}")
        if report.message:
            print(f"note: {report.message}")
    else:
        place = f"line {report.bad_line}: " if report.bad_line else ""
        print(f"{folder}: {place}{report.message}")
    if not report.ok:
        raise typer.Exit(1)
