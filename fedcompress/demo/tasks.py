"""The table of demos has a row for each task that a federation can be seen to learn on one machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcompress.demo import data


@dataclass(frozen=True, kw_only=True)
class DemoTask:
    """A demo task says what is trained, on what, and how long.

    Args:
        description: model and adapter, for people.
        model: finds the folder of the base model.
        template: options of ``fedcompress template``.
        form: makes the sites' rows.
        config: overrides of the run config.
        dtype: in which sites load the base model.
        rows: questions of a department, at most.
        rounds: default number of rounds.
        steps: default number of optimizer steps of a site in a round.
        memory: bytes that three sites need, about.
        samples: whether answers of before and after the training are shown; the model is a language model then.
    """

    description: str
    model: Callable[[], Path]
    template: tuple[str, ...]
    form: data.RowFormat
    config: Mapping[str, Any]
    dtype: str = "float32"
    rows: int = data.ROWS_PER_LABEL
    rounds: int = 5
    steps: int = 12
    memory: int = 4 << 30
    samples: bool = False


DEPARTMENT = "medmcqa-department"
CHAT = "chat"
DEMOS: dict[str, DemoTask] = {
    DEPARTMENT: DemoTask(
        description="all-MiniLM-L6-v2, LoRA r=8 on query and value, mean-pooled linear head",
        model=data.model_folder,
        template=(
            "--task=classification",
            f"--labels={','.join(data.LABELS)}",
            "--adapter=lora(r=8,targets=query+value)",
        ),
        form=data.format_classification,
        config={"batch-size": 16, "max-length": 48},
        memory=4 << 30,
    ),
    CHAT: DemoTask(
        description="SmolLM2-135M-Instruct in bfloat16, LoRA r=8 on all linear layers",
        model=data.smollm2_folder,
        dtype="bfloat16",
        template=("--task=causal-lm", "--adapter=lora(r=8,targets=all-linear)"),
        form=data.format_completion,
        rows=60,
        config={"batch-size": 8, "max-length": 160, "lr": 1e-3, "schedule": "cosine(warmup=2)"},
        rounds=4,
        steps=6,
        memory=6 << 30,
        samples=True,
    ),
}
