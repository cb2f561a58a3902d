"""``fedcompress evaluate`` measures models on rows of a file, or by tasks of the Language Model Evaluation Harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedcompress.cli.help import FILES_SECTION, App

if TYPE_CHECKING:
    from fedcompress.experiments.lm_eval import Scores


def register(app: App) -> None:
    """Add the command to the app."""
    app.add(evaluate, section=FILES_SECTION)


def evaluate(
    folder: Annotated[Path, typer.Argument(help="A stock PEFT folder, or a model.")],
    tasks: Annotated[str, typer.Option(help="Tasks of the harness, joined by commas: see `lm-eval ls tasks`.")] = "",
    data: Annotated[str, typer.Option(help="File of rows instead: CSV, JSONL, parquet, as a site reads them.")] = "",
    model: Annotated[str, typer.Option(help="An adapter's base: folder, GGUF file or hub id.")] = "",
    text: Annotated[str, typer.Option(help="Column of the texts of --data.")] = "text",
    label: Annotated[str, typer.Option(help="Column of the classes of --data.")] = "label",
    labels: Annotated[
        str, typer.Option(help="Classes in the order of the logits, by commas, where the folder does not say them.")
    ] = "",
    max_length: Annotated[int, typer.Option(min=1, help="Tokens of a row of --data.")] = 256,
    include: Annotated[Path | None, typer.Option(help="Folder with task files (YAML) of one's own.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Rows of each task, or of --data; 0: all.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at once.")] = 8,
    dtype: Annotated[str, typer.Option(help="Of the base: float32, bfloat16 or float16.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure a base and the adapter on it, or a model: on rows of a file, or by tasks of lm-evaluation-harness.

    --data gives accuracy and loss: of a classifier also those of each class, of a language model those of completions.
    Tasks of the harness download their data the first time; a folder of one's own tasks needs no network.

    Examples:
      fedcompress evaluate state/adapter --data test.csv --model ./minilm --text utterance --label scenario
      fedcompress evaluate state/adapter --data chats.jsonl --model ./smollm2 --json
      fedcompress evaluate state/adapter --model ./smollm2 --tasks arc_easy,hellaswag --limit 200
      fedcompress evaluate merged --tasks my_task --include ./tasks --json
    """
    from fedcompress.errors import ConfigError

    if not folder.is_dir():  # a name with one slash would be looked for on the hub
        raise ConfigError("FOLDER", folder, "must be a folder: an adapter's or a model's")
    if bool(tasks) == bool(data):
        raise ConfigError("--tasks", repr(tasks), "must name tasks of the harness, or else --data a file of rows")
    if data:
        from fedcompress.runtime.app_commands import encode_command, execute

        options = {"folder": folder, "data": data, "model": model, "text": text, "label": label, "labels": labels}
        sizes = {"max_length": max_length, "limit": limit, "batch_size": batch_size}
        execute(
            "clients.commands", *encode_command("evaluate", {**options, **sizes, "dtype": dtype, "as_json": as_json})
        )
    _run_harness(folder, tasks, model, include, limit=limit, batch_size=batch_size, dtype=dtype, as_json=as_json)


def _run_harness(
    folder: Path,
    tasks: str,
    model: str,
    include: Path | None,
    *,
    limit: int,
    batch_size: int,
    dtype: str,
    as_json: bool,
) -> None:
    """Measure by tasks of the harness, and print; the arguments are those of the command."""
    from fedcompress.adapters.base_model import DTYPES, resolve_model
    from fedcompress.adapters.exported_model import is_adapter, read_base_name
    from fedcompress.errors import ConfigError, one_of
    from fedcompress.experiments.lm_eval import run_tasks

    if dtype not in DTYPES:
        raise ConfigError("--dtype", dtype, one_of(DTYPES, dtype))
    if include is not None and not include.is_dir():
        raise ConfigError("--include", include, "must be a folder with task files")
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise ConfigError("--tasks", tasks, "must name a task")
    if model and not is_adapter(folder):
        raise ConfigError("--model", model, f"is for an adapter, which {folder} is not")
    name = (model or read_base_name(folder)) if is_adapter(folder) else str(folder)
    if not name:
        raise ConfigError("--model", "nothing", f"must name the base model: the config of {folder} does not")
    base = resolve_model(name, Path(), field="--model" if is_adapter(folder) else "FOLDER")
    adapter = folder if is_adapter(folder) else None
    scores = run_tasks(base, adapter, names, include=include, limit=limit, batch_size=batch_size, dtype=dtype)
    if as_json:
        print(json.dumps({"folder": str(folder), "model": str(base), "tasks": names, "limit": limit, "scores": scores}))
        return
    _print(scores)


def _print(scores: dict[str, Scores]) -> None:
    """Print a row for each task and metric, with a column for each model."""
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "metric", *scores, title="lm-evaluation-harness")
    for task, metrics in scores["base"].items():
        for metric in metrics:
            values = [f"{by_task[task][metric]:.4f}" for by_task in scores.values()]
            table.add_row(task, metric, *values)
    Console().print(table)
