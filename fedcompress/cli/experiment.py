"""``fedcompress experiment`` runs a grid of demos."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedcompress.cli.help import RUN_SECTION, App


def register(app: App) -> None:
    """Add the command to the app."""
    app.add(experiment, section=RUN_SECTION)


def experiment(
    grid: Annotated[Path, typer.Argument(help="TOML with [fixed] and [grid] options of `fedcompress demo`.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for one result a cell, and results.json.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json on stdout.")] = False,
) -> None:
    """Run every cell of a grid; cells that have a result are kept, so it can be stopped and resumed.

    Example:
      fedcompress experiment benchmarks/grids/small.toml -o small
    """
    from fedcompress.experiments import Grid, run_grid

    def on_cell(number: int, count: int, result: dict[str, Any]) -> None:
        ratio = result["ratio_vs_bf16"]
        line = f"{number}/{count} {result['options']}: accuracy {result['accuracy_end']:.4f}, up {ratio['up']:.1f} x, "
        print(line + f"down {ratio['down']:.1f} x, {result['wall_seconds']:.0f} s", file=sys.stderr)

    results = run_grid(Grid.load(grid), out, on_cell)
    if as_json:
        print(json.dumps(results))
