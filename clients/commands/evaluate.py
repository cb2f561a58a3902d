"""``fedcompress evaluate --data`` measures a base and the adapter on it, or a model, on rows of a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.data_sources import make_absolute
from clients.site import Data
from clients.training.data.examples import load_examples
from clients.training.tasks import Example, Task, task_for
from fedcompress.adapters.base_model import DTYPES, BaseModel, load_tokenizer, resolve_model
from fedcompress.adapters.exported_model import (
    is_adapter,
    load_base,
    put_adapter,
    read_base_name,
    read_config,
    read_objective,
)
from fedcompress.adapters.positions import check_length, count_positions
from fedcompress.config.objective import Classification, Objective
from fedcompress.errors import ConfigError, one_of


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options that can be set on the command line."""

    folder: str
    data: str
    model: str = ""
    text: str = "text"
    label: str = "label"
    labels: str = ""
    max_length: int = 256
    limit: int = 0
    batch_size: int = 32
    dtype: str = "float32"
    as_json: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError("--dtype", self.dtype, one_of(DTYPES, self.dtype))
        for name in ("max_length", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')}", getattr(self, name), "must be at least 1")


def run(options: Options) -> int:
    """Measure and print; return 0.

    Raises:
        ConfigError: an option, the folder or a row is wrong.
        MismatchError: the adapter is of another model.
    """
    folder = Path(options.folder)
    labels = tuple(name.strip() for name in options.labels.split(",") if name.strip())
    with redirect_stdout(sys.stderr):  # libraries print when they are imported
        objective = read_objective(folder, labels)
        path = _find_base(options, folder)
        count, scores = _measure_all(options, folder, path, objective)
    result = {"folder": str(folder), "model": str(path), "data": options.data, "rows": count, "scores": scores}
    if options.as_json:
        print(json.dumps(result))
    else:
        _print(result)
    return 0


def _load_rows(options: Options, data: Data, task: Task) -> list[Example]:
    """Tokenize the rows that are measured.

    Raises:
        ConfigError: the file cannot be read, lacks columns, or has a malformed row; it names the options.
    """
    try:
        rows = list(load_examples(data, "heldout", task))
    except ConfigError as error:
        field = error.field.replace("data.heldout", "--data")
        named = "other names are told by --text and --label"
        raise ConfigError(
            field, error.value, error.rule.replace("other names are told under [data] in site.toml", named)
        ) from error
    return rows[: options.limit] if options.limit else rows


def _find_base(options: Options, folder: Path) -> Path:
    """Find the folder of the adapter's base, or of the model itself.

    Raises:
        ConfigError: there is no such model, or an adapter's config names none and neither does the option.
    """
    if not is_adapter(folder):
        if options.model:
            raise ConfigError("--model", options.model, f"is for an adapter, which {folder} is not")
        return resolve_model(str(folder), Path(), field="FOLDER")
    name = options.model or read_base_name(folder)
    if not name:
        raise ConfigError("--model", "nothing", f"must name the base model: the config of {folder} does not")
    return resolve_model(name, Path(), field="--model")


def _measure_all(
    options: Options, folder: Path, path: Path, objective: Objective
) -> tuple[int, dict[str, dict[str, Any]]]:
    """Measure the base, unless its head is not trained, and the adapter on it; or the model.

    Args:
        options: of the command.
        folder: the adapter's or the model's.
        path: the base's, or the model's.
        objective: what was learnt.

    Returns:
        The number of rows, and scores of ``base`` and ``adapter``, or of ``model``.
    """
    source = make_absolute(options.data, Path.cwd())
    data = Data(train=source, heldout=source, text=options.text, label=options.label)
    check_length(options.max_length, count_positions(path, read_config(folder)), "--max-length")
    task = task_for(objective, data, load_tokenizer(path), options.max_length)
    rows = _load_rows(options, data, task)
    module: Any = load_base(folder, BaseModel(path=path, dtype=options.dtype), objective)
    if not is_adapter(folder):
        return len(rows), {"model": measure(module, task, rows, objective, options.batch_size)}
    scores = {}
    if not isinstance(objective, Classification):
        scores["base"] = measure(module, task, rows, objective, options.batch_size)
    if any(folder.glob("tokenizer*")):  # its vocabulary may have grown
        task = task_for(objective, data, load_tokenizer(folder), options.max_length)
        rows = _load_rows(options, data, task)
    scores["adapter"] = measure(put_adapter(module, folder), task, rows, objective, options.batch_size)
    return len(rows), scores


def measure(module: Any, task: Task, rows: Sequence[Example], objective: Objective, size: int) -> dict[str, Any]:
    """Measure a model on rows, in batches of rows of about one length.

    Args:
        module: the model, in evaluation mode.
        task: measures a batch.
        rows: tokenized rows.
        objective: what was learnt.
        size: rows of a batch.

    Returns:
        ``accuracy`` (of predictions: classes, or tokens of completions), ``loss`` (nats a prediction), ``predictions``;
        of a classifier also ``labels``: rows and accuracy of each class that has rows; else ``exact``, the share of
        rows that greedy decoding answers word for word.
    """
    import torch

    groups: dict[str, list[Any]] = {"": list(rows)}
    if isinstance(objective, Classification):
        groups = {label: [r for r in rows if r.labels[0] == i] for i, label in enumerate(objective.labels)}
    sums: dict[str, list[float]] = {}
    with torch.no_grad():
        for label, members in groups.items():
            members.sort(key=lambda row: len(row.tokens))
            total = [0.0, 0.0, 0.0, 0.0]
            for start in range(0, len(members), size):
                done = task.measure(module, task.batch(members[start : start + size]))
                figures = (done.correct, done.loss, done.count, done.exact)
                total = [a + float(b) for a, b in zip(total, figures, strict=True)]
            sums[label] = total
    correct, loss, count, exact = (sum(column) for column in zip(*sums.values(), strict=True))
    scores: dict[str, Any] = {"accuracy": correct / count, "loss": loss / count, "predictions": int(count)}
    if not isinstance(objective, Classification):
        return scores | {"exact": exact / len(rows)}
    by_label = {k: {"rows": int(n), "accuracy": right / n} for k, (right, _, n, _) in sums.items() if n}
    return scores | {"labels": by_label}


def _print(result: dict[str, Any]) -> None:
    """Print a row for each figure, with a column for each model, and the classes of a classifier."""
    from rich.console import Console
    from rich.table import Table

    scores = result["scores"]
    console = Console()
    table = Table("figure", *scores, title=f"{result['rows']:,} rows of {result['data']}")
    for name in next(iter(scores.values())):
        if name != "labels":
            values = [f"{s[name]:,}" if isinstance(s[name], int) else f"{s[name]:.4f}" for s in scores.values()]
            table.add_row(name, *values)
    console.print(table)
    last = list(scores.values())[-1]
    if "labels" in last:
        by_label = Table("class", "rows", "accuracy")
        for label, figures in last["labels"].items():
            by_label.add_row(label, f"{figures['rows']:,}", f"{figures['accuracy']:.4f}")
        console.print(by_label)
