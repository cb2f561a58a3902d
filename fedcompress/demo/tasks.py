"""The demos: one row for each thing that a federation can be seen to learn here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcompress.demo import data

BYTES_OF = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class DemoTask:
    """One demo.

    Args:
        about: model and adapter, for people.
        model: gives the base model's folder.
        dtype: in which sites load it.
        template: options of ``fedcompress template``.
        form: what a row is made of.
        rows: questions of a department.
        config: overrides of the run config.
        rounds: default.
        steps: default, of a site in a round.
        memory: bytes that a site needs, about.
        samples: whether answers are shown before and after.
    """

    about: str
    model: Callable[[], Path]
    template: tuple[str, ...]
    form: data.Form
    config: Mapping[str, Any]
    dtype: str = "float32"
    rows: int = data.ROWS_PER_LABEL
    rounds: int = 5
    steps: int = 12
    memory: int = 4 << 30
    samples: bool = False


DEPARTMENT, CHAT = "medmcqa-department", "chat"
DEMOS: dict[str, DemoTask] = {
    DEPARTMENT: DemoTask(
        about="all-MiniLM-L6-v2, LoRA r=8 on query and value, mean-pooled linear head",
        model=data.model_folder,
        template=(
            "--task=classification",
            f"--labels={','.join(data.LABELS)}",
            "--adapter=lora(r=8,targets=query+value)",
        ),
        form=data.classified,
        config={"batch-size": 16, "max-length": 48},
        memory=4 << 30,
    ),
    CHAT: DemoTask(
        about="SmolLM2-135M-Instruct in bfloat16, LoRA r=8 on all linear layers",
        model=data.smollm2_folder,
        dtype="bfloat16",
        template=("--task=causal-lm", "--adapter=lora(r=8,targets=all-linear)"),
        form=data.answered,
        rows=60,
        config={"batch-size": 8, "max-length": 160, "lr": 1e-3, "schedule": "cosine(warmup=2)"},
        rounds=4,
        steps=6,
        memory=6 << 30,
        samples=True,
    ),
}
