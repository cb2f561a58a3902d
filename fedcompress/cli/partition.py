"""``fedcompress partition`` makes the data of several sites of one data set."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fedcompress.cli.help import FILES_SECTION, App

MAX_COLUMNS = 12  # values that a terminal has room for


def register(app: App) -> None:
    """Add the command to the app."""
    app.add(partition, section=FILES_SECTION)


def partition(
    path: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="One JSON object a line.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; site-1/train.jsonl and so on.")],
    sites: Annotated[int, typer.Option(help="How many.")] = 2,
    by: Annotated[str, typer.Option(help="Field whose values sites are to differ in.")] = "",
    alpha: Annotated[
        float | None,
        typer.Option(help="Of a Dirichlet distribution: 0.1 for sites that differ much, 100 for hardly."),
    ] = None,
    least: Annotated[int, typer.Option(help="Rows that every site gets.")] = 1,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal files.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Share the rows of a data set among sites, for experiments.

    With --by and --alpha each value's rows are shared out by a Dirichlet draw of its own; with --by alone all rows
    of a value are at one site; with --alpha alone the sizes of sites are drawn; with neither all sites are alike.

    Examples:
      fedcompress partition all.jsonl --sites 8 --by label --alpha 0.3 -o sites
      fedcompress partition all.jsonl --sites 4 --by hospital -o sites
      fedcompress partition all.jsonl --sites 10 --alpha 0.5 --least 100 -o sites --json
    """
    from fedcompress.experiments.partition import Partition
    from fedcompress.experiments.partition import partition as share

    if by and alpha is not None:
        how = "dirichlet"
    elif by:
        how = "key"
    else:
        how = "quantity" if alpha is not None else "iid"
    rule = Partition(sites=sites, how=how, alpha=0.5 if alpha is None else alpha, least=least, seed=seed)
    lines, keys = _read(path, by)
    shares = share(len(lines), rule, keys if by else None)
    folders = [out / f"site-{number}" for number in range(1, sites + 1)]
    summary = []
    for folder, rows in zip(folders, shares, strict=True):
        _write(folder / "train.jsonl", [lines[row] for row in rows])
        classes = dict(sorted(Counter(keys[row] for row in rows if by).items()))
        summary.append({"site": folder.name, "rows": len(rows), "classes": classes})
    if as_json:
        print(json.dumps({"how": how, "seed": seed, "rows": len(lines), "sites": summary}))
    else:
        _show(how, summary)


def _read(path: Path, by: str) -> tuple[list[bytes], list[str]]:
    """Read the lines of a data set.

    Args:
        path: JSON Lines.
        by: field that is the key of a row; empty: rows need none.

    Returns:
        The lines as they are, and the key of each as text.

    Raises:
        ConfigError: no such file; a line is not a JSON object, or lacks the field.
    """
    from fedcompress.errors import ConfigError

    if not path.is_file():
        raise ConfigError("IN.jsonl", path, "must be an existing file")
    lines, keys = [], []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            rule = f"must be a JSON object in UTF-8: {type(error).__name__}"
            raise ConfigError(f"{path.name}:{number}", f"{len(line)} bytes", rule) from None
        if not isinstance(row, dict) or (by and by not in row):
            rule = f"must be a JSON object with {by!r}" if by else "must be a JSON object"
            raise ConfigError(f"{path.name}:{number}", type(row).__name__, rule)
        lines.append(line)
        value = row.get(by)
        keys.append(value if isinstance(value, str) else json.dumps(value, sort_keys=True))
    return lines, keys


def _write(path: Path, lines: Sequence[bytes]) -> None:
    """Write lines to a file, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def _show(how: str, summary: list[dict[str, Any]]) -> None:
    """Print a row for each site, with the number of rows of each of the first values."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    names = sorted({name for site in summary for name in site["classes"]})
    columns = names[:MAX_COLUMNS]
    table = Table("site", "rows", *columns, box=box.SIMPLE, title=how, title_justify="left")
    for site in summary:
        counts = [str(site["classes"].get(name, 0)) for name in columns]
        table.add_row(site["site"], str(site["rows"]), *counts)
    Console().print(table)
    if len(names) > MAX_COLUMNS:
        print(f"and {len(names) - MAX_COLUMNS} more values: --json tells them")
