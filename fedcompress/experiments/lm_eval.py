"""Models are measured by tasks of the Language Model Evaluation Harness, which is the optional package lm-eval."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fedcompress.adapters.base_model import BaseModel, load_tokenizer
from fedcompress.adapters.exported_model import load_base, put_adapter
from fedcompress.config.objective import CausalLM, Seq2SeqLM
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
) -> dict[str, Scores]:
    """Run tasks of the harness on a model, and on the same model with an adapter; it is loaded once.

    What the harness prints goes to standard error.

    Args:
        base: folder of a model.
        adapter: PEFT folder for that model, or None to measure the model alone.
        tasks: names of tasks of the harness, or of ``include``.
        include: folder with task files (YAML) of one's own.
        limit: rows of each task; 0 is all.
        batch_size: rows at once.
        dtype: in which the base is loaded, a name of torch.

    Returns:
        The measured values by task and metric, of ``base`` and, where there is one, of ``adapter``.

    Raises:
        MissingPackageError: lm-eval is not installed.
        ConfigError: there is no such task.
        MismatchError: the adapter is of another model.
    """
    with _standard_output_to_error():
        harness = _import_harness()
        from transformers import AutoConfig

        manager = harness.TaskManager(include_path=str(include) if include is not None else None)
        unknown = [task for task in tasks if task not in manager.all_tasks]
        if unknown:
            or_included = f", or of {include}" if include is not None else ""
            raise ConfigError("--tasks", unknown[0], f"must be of `lm-eval ls tasks`{or_included}")
        objective = Seq2SeqLM() if AutoConfig.from_pretrained(base).is_encoder_decoder else CausalLM()
        module: Any = load_base(adapter or base, BaseModel(path=base, dtype=dtype), objective).to(harness.device)

        def measure(model: Any, tokenizer_folder: Path) -> Scores:
            wrapped = harness.HFLM(pretrained=model, tokenizer=load_tokenizer(tokenizer_folder), batch_size=batch_size)
            report: Any = harness.simple_evaluate(
                model=wrapped, tasks=list(tasks), task_manager=manager, limit=limit or None, log_samples=False
            )
            return {task: _numbers(values) for task, values in report["results"].items()}

        scores = {"base": measure(module, base)}
        if adapter is not None:
            has_tokenizer = any(adapter.glob("tokenizer*"))
            adapted = put_adapter(module, adapter).to(harness.device)
            scores["adapter"] = measure(adapted, adapter if has_tokenizer else base)
    return scores


def _import_harness() -> SimpleNamespace:
    """Import what is used of the harness, with the device to compute on.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import torch
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        hint = "pip install 'fedcompress[evaluate]'"
        raise MissingPackageError(f"lm-eval: {error}: the tasks of the harness need it: {hint}") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"  # the harness takes a GPU for granted
    return SimpleNamespace(simple_evaluate=simple_evaluate, HFLM=HFLM, TaskManager=TaskManager, device=device)


@contextmanager
def _standard_output_to_error() -> Iterator[None]:
    """Send what is written to standard output, by this process and its children, to standard error for a while."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of a task that are numbers; the harness names the filter of answers after a comma."""
    return {key.removesuffix(",none"): float(value) for key, value in values.items() if isinstance(value, float)}
