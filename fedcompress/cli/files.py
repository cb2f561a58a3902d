"""``fedcompress encode``, ``decode`` and ``inspect`` work on updates on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from fedcompress.cli.help import FILES_SECTION, App

Base = Annotated[Path | None, typer.Option(help="What the values are a difference from: a folder or .safetensors.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

AllowLarge = Annotated[
    bool, typer.Option("--allow-large", help="Take a file that decodes to 10,000 times its size, or for hours.")
]


def register(app: App) -> None:
    """Add the commands to the app."""
    app.add(encode, section=FILES_SECTION)
    app.add(decode, section=FILES_SECTION)
    app.add(inspect, section=FILES_SECTION)


def encode(
    path: Annotated[Path, typer.Argument(help="A PEFT adapter folder, or a .safetensors file.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The .fcu file to write.")],
    base: Base = None,
    codec: Annotated[
        str, typer.Option(help="Codec spec or preset, see `fedcompress codecs`. [default: transform(budget=0.28)]")
    ] = "",
    budget: Annotated[
        str, typer.Option(help="Instead of a codec: at most 64KiB, 2MiB, 1000B, or bits a parameter (0.28).")
    ] = "",
    seed: Annotated[int, typer.Option(help="Seed of what is random in the codec.")] = 0,
    as_json: Json = False,
) -> None:
    """Compress an adapter, or a checkpoint or full-model delta, into a self-contained .fcu file.

    A budget is for the values; names, shapes and the adapter's config come on top, a few kilobytes.
    Without --base, an adapter is judged by the change that it makes to its model: error is that of the
    change (0: none, 1: as if there were no adapter), and tensors of which it cannot be known without the
    base, as whole copies of heads, are coded exactly and come on top, too; they are listed.

    Examples:
      fedcompress encode my-adapter -o adapter.fcu
      fedcompress encode round-7 -o update.fcu --base round-6 --budget 64KiB
      fedcompress encode tuned.safetensors -o delta.fcu --base model.safetensors --codec "topk(density=0.05)|ternary"
    """
    from fedcompress.files import encode_file

    with progress_bar("encoding") as progress:
        facts = encode_file(path, out, base=base, codec=codec, budget=budget, seed=seed, progress=progress)
    if not as_json and not facts.get("exact"):
        facts.pop("exact", None)
    show(facts, as_json)


def decode(
    path: Annotated[Path, typer.Argument(help="A file that `fedcompress encode` wrote.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; a .safetensors file if that was encoded.")],
    base: Base = None,
    allow_large: AllowLarge = False,
    as_json: Json = False,
) -> None:
    """Restore a stock PEFT folder, or a .safetensors file, in its own dtypes.

    Examples:
      fedcompress decode adapter.fcu -o my-adapter
      fedcompress decode update.fcu -o round-7 --base round-6
      fedcompress decode delta.fcu -o tuned.safetensors --base model.safetensors
    """
    from fedcompress.files import decode_file

    with progress_bar("decoding") as progress:
        facts = decode_file(path, out, base=base, allow_large=allow_large, progress=progress)
    show(facts, as_json)


def inspect(
    path: Annotated[Path, typer.Argument(help="An .fcu file, a PEFT adapter folder, or a .safetensors file.")],
    reference: Annotated[
        Path | None, typer.Option(help="What was encoded: shows how much of it an .fcu file captures.")
    ] = None,
    base: Base = None,
    allow_large: AllowLarge = False,
    as_json: Json = False,
) -> None:
    """Show header, sizes and distortion of an update, or what an adapter holds and what is worth dropping.

    Examples:
      fedcompress inspect update.fcu
      fedcompress inspect update.fcu --reference round-7 --base round-6
      fedcompress inspect demo-out/adapter --json
    """
    from fedcompress.files import inspect_file

    with progress_bar("reading") as progress:
        facts = inspect_file(path, reference=reference, base=base, allow_large=allow_large, progress=progress)
    show(facts, as_json)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal's stderr that disappears when the work is done.

    Args:
        what: is done, as the bar says it.

    Yields:
        A function that takes how much is done, and how much there is.

    Raises:
        ConfigError: the block has raised an error of the file system.
    """
    from rich.console import Console
    from rich.progress import Progress

    from fedcompress.errors import ConfigError

    console = Console(stderr=True)
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    except OSError as error:
        raise ConfigError("file", error.filename, f"{error.strerror}: must be readable, or writable") from error


def show(facts: dict[str, Any], as_json: bool) -> None:
    """Print facts as JSON, or as lines, with lists of rows as tables below them."""
    if as_json:
        print(json.dumps(facts))
        return
    tables: list[tuple[str, list[dict[str, Any]]]] = []
    for key, value in facts.items():
        match value:
            case [{}, *_]:
                tables.append((key, value))
            case {} if value and all(isinstance(v, dict) for v in value.values()):
                tables.append((key, [{"name": name, **row} for name, row in value.items()]))
            case {}:
                pairs = ", ".join(f"{name} {_format(item)}" for name, item in value.items())
                print(f"{key:<20} {pairs}")
            case _:
                print(f"{key:<20} {_format(value)}")
    for title, rows in tables:
        print(f"\n{title}")
        _print_table(rows)


def _print_table(rows: list[dict[str, Any]]) -> None:
    """Print rows of equal keys, with the keys as heading; numbers stand right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for key in rows[0]:
        table.add_column(key, justify="right" if isinstance(rows[0][key], int | float) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_format(value) for value in row.values()))
    Console(markup=False, highlight=False).print(table)


def _format(value: object) -> str:
    """Return a value of a fact as text for people."""
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case [*items]:
            return ", ".join(map(str, items))
        case _:
            return str(value)
