"""Tasks as JSON, and what is refused."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from fedcompress.config.objective import Classification, objective_json
from fedcompress.config.train_task import LARGEST, MOST, TrainTask
from fedcompress.errors import ConfigError
from tests.support import lora_layout

LAYOUT = lora_layout()


TASK = TrainTask(
    run="r",
    round=1,
    version=0,
    steps=1,
    batch_size=2,
    lr=0.1,
    optimizer="adamw8bit",
    codec="none",
    feedback=1.0,
    max_length=8,
    objective=objective_json(Classification(labels=("a", "b"))),
    seed=0,
    adapter_config="{}",
    layout=LAYOUT.to_json(),
    merged=("ab",),
)


def test_tasks_round_trip() -> None:
    assert TrainTask.from_json(TASK.to_json()) == TASK


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"protocol": 1}, "task.protocol: 1"),
        ({"run": "../x"}, "task.run"),
        ({"batch_size": 0}, "task.batch_size: 0"),
        ({"lr": float("nan")}, "task.lr: nan"),
        ({"steps": -1}, "task.steps: -1"),
        ({"steps": 10_000_001}, "task.steps: 10000001: must be at most 10000000"),
        ({"max_length": 1 << 40}, "task.max_length"),
        ({"deadline": 1e12}, "task.deadline"),
        ({"merged": ("ab",) * 100_001}, "task.merged: 100001 entries: must be at most 100000"),
        ({"adapter_config": '{"peft_type": "XLORA"}'}, "task.adapter_config.peft_type: XLORA: must be one of"),
        ({"optimizer": "adam"}, "task.optimizer: adam"),
        ({"objective": "{}"}, "task.objective"),
        ({"objective": '{"labels":["a","a"],"name":"classification"}'}, "objective.labels"),
        ({"objective": '{"head":"cls","labels":["a","b"],"name":"classification"}'}, "objective.head: cls"),
        ({"schedule": "step"}, "task.schedule: step"),
        ({"correction": "fedprox(mu=0)"}, "correction.fedprox.mu"),
        ({"codec": "zip"}, "task.codec"),
        ({"feedback": 2.0}, "feedback.decay: 2.0"),
    ],
)
def test_bad_tasks(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        replace(TASK, **changes)


def test_every_number_and_list_of_a_task_has_a_bound() -> None:
    """Numbers that their own parsers bound to a few values are named here."""
    of_their_own = {"feedback", "protocol"}
    kinds = {f.name: str(f.type) for f in fields(TrainTask)}
    assert {n for n, kind in kinds.items() if kind in ("int", "float")} - of_their_own == set(LARGEST)
    assert {n for n, kind in kinds.items() if kind.startswith("tuple")} == set(MOST)


def test_a_task_that_is_not_one() -> None:
    for text in ("", "{}", "[]", TASK.to_json().replace('"round"', '"lap"')):
        with pytest.raises(ConfigError, match=r"^task: "):
            TrainTask.from_json(text)
