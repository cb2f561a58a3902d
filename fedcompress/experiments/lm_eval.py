"""Models are measured by tasks of the Language Model Evaluation Harness, which is the optional package lm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedcompress.errors import ConfigError, MissingPackageError

Scores = dict[str, dict[str, float]]  # values by task and metric


def run_tasks(
    base: Path,
    adapter: Path | None,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    limit: int = 0,
    batch_size: int = 8,
    dtype: str = "float32",
) -> Scores:
    """Run tasks of the harness on a model, with or without an adapter.

    Args:
        base: folder of a model.
        adapter: PEFT folder for that model, or None to measure the model alone.
        tasks: names of tasks of the harness, or of ``include``.
        include: folder with task files (YAML) of one's own.
        limit: rows of each task; 0 is all.
        batch_size: rows at once.
        dtype: in which the base is loaded, a name of torch.

    Returns:
        The measured values by task and metric.

    Raises:
        MissingPackageError: lm-eval is not installed.
        ConfigError: there is no such task.
    """
    try:
        import torch
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        hint = "pip install 'fedcompress[evaluate]'"
        raise MissingPackageError(f"lm-eval: {error}: the tasks of the harness need it: {hint}") from error
    manager = TaskManager(include_path=str(include) if include is not None else None)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        or_included = f", or of {include}" if include is not None else ""
        raise ConfigError("--tasks", unknown[0], f"must be of `lm-eval ls tasks`{or_included}")
    device = "cuda" if torch.cuda.is_available() else "cpu"  # the harness takes a GPU for granted
    peft = str(adapter) if adapter is not None else None
    model = HFLM(pretrained=str(base), peft=peft, dtype=dtype, batch_size=batch_size, device=device)
    report: Any = simple_evaluate(
        model=model, tasks=list(tasks), task_manager=manager, limit=limit or None, log_samples=False
    )
    return {task: _numbers(values) for task, values in report["results"].items()}


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of a task that are numbers; the harness names the filter of answers after a comma."""
    return {key.removesuffix(",none"): float(value) for key, value in values.items() if isinstance(value, float)}
