"""``fedcompress evaluate`` measures models by tasks of the Language Model Evaluation Harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedcompress.cli.help import FILES_SECTION, App

if TYPE_CHECKING:
    from fedcompress.experiments.lm_eval import Scores


def register(app: App) -> None:
    """Add the command to the app."""
    app.add(evaluate, section=FILES_SECTION)


def evaluate(
    folder: Annotated[Path, typer.Argument(help="A stock PEFT folder, or a model.")],
    tasks: Annotated[str, typer.Option(help="Names of tasks, joined by commas: see `lm-eval ls tasks`.")],
    model: Annotated[str, typer.Option(help="An adapter's base: folder, GGUF file or hub id.")] = "",
    include: Annotated[Path | None, typer.Option(help="Folder with task files (YAML) of one's own.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Rows of each task; 0: all.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at once.")] = 8,
    dtype: Annotated[str, typer.Option(help="Of the base: float32, bfloat16 or float16.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure a base and the adapter on it by tasks of lm-evaluation-harness, side by side.

    Tasks of the harness download their data the first time; a folder of one's own tasks needs no network.

    Examples:
      fedcompress evaluate state/adapter --model ./smollm2 --tasks arc_easy,hellaswag --limit 200
      fedcompress evaluate merged --tasks my_task --include ./tasks --json
    """
    from fedcompress.adapters.base_model import DTYPES, resolve_model
    from fedcompress.errors import ConfigError
    from fedcompress.experiments.lm_eval import run_tasks

    if dtype not in DTYPES:
        raise ConfigError("--dtype", dtype, f"must be one of {list(DTYPES)}")
    if include is not None and not include.is_dir():
        raise ConfigError("--include", include, "must be a folder with task files")
    config = folder / "adapter_config.json"
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    is_adapter = config.is_file()
    if not names:
        raise ConfigError("--tasks", tasks, "must name a task")
    if not folder.is_dir():  # a name with one slash would be looked for on the hub
        raise ConfigError("FOLDER", folder, "must be a folder: an adapter's or a model's")
    if model and not is_adapter:
        raise ConfigError("--model", model, f"is for an adapter, which {folder} is not")
    if not is_adapter:
        base = resolve_model(str(folder), Path(), field="FOLDER")
    else:
        base = resolve_model(model or _read_base_name(config), Path(), field="--model")
    options: dict[str, Any] = {"include": include, "limit": limit, "batch_size": batch_size, "dtype": dtype}
    scores = {"base": run_tasks(base, None, names, **options)}
    if is_adapter:
        scores["adapter"] = run_tasks(base, folder, names, **options)
    if as_json:
        print(json.dumps({"folder": str(folder), "model": str(base), "tasks": names, "limit": limit, "scores": scores}))
        return
    _print(scores)


def _read_base_name(config: Path) -> str:
    """Return the base model that an adapter's config names."""
    from fedcompress.errors import ConfigError

    try:
        return str(json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError("FOLDER", config, "must be JSON that names base_model_name_or_path") from error


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
