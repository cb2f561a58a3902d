"""Training options are declared once: runs and tasks inherit them, and every task is made from all of them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from clients.commands.train import Options
from clients.commands.train import build_local_task as build_local_task
from fedcompress.adapters import Adapter, Template
from fedcompress.config.objective import Classification
from fedcompress.config.run_config import RunConfig
from fedcompress.config.train_task import TrainTask
from fedcompress.config.training_options import TrainingOptions, pick_training_options, training_option_names
from fedcompress.errors import ConfigError
from server.round.tasks import build_task
from tests.support import lora_layout, normal

LAYOUT = lora_layout()
TEMPLATE = Template(
    adapter=Adapter(config={"r": 4, "peft_type": "LORA"}, layout=LAYOUT, tensors=normal(LAYOUT, 0)),
    objective=Classification(labels=("a", "b")),
    freeze=("norm",),
    base_fingerprint="f0",
    tokenizer="70",
    constants="c0",
    quantization="4bit",
)
CHANGED: dict[str, Any] = {
    "rounds": 7,
    "steps": 3,
    "batch_size": 2,
    "lr": 0.25,
    "optimizer": "adamw(eps=0.5)",
    "optimizer_state": "keep",
    "codec": "int8",
    "feedback": 0.5,
    "feedback_warmup": 2,
    "feedback_reset": 3,
    "residual_store": "bf16",
    "schedule": "linear",
    "clip": 2.0,
    "correction": "fedprox",
    "max_length": 9,
    "seed": 11,
}


def test_the_changes_of_this_test_are_of_all_options() -> None:
    assert set(CHANGED) == set(training_option_names())
    assert all(getattr(TrainingOptions, name) != value for name, value in CHANGED.items())


@pytest.mark.parametrize("settings", [RunConfig, TrainTask, Options])
def test_no_option_is_declared_a_second_time(settings: type[TrainingOptions]) -> None:
    """Only what differs from the rest is declared again: what a task must spell out, and a command's own defaults."""
    again = set(vars(settings)["__annotations__"]) & set(training_option_names())
    assert (
        again
        == {
            RunConfig: set(),
            TrainTask: {"steps", "batch_size", "lr", "optimizer", "codec", "feedback", "max_length", "seed", "rounds"},
            Options: {"rounds", "steps", "optimizer_state", "codec"},
        }[settings]
    )
    types = {f.name: f.type for f in fields(settings)}
    assert all(types[f.name] == f.type for f in fields(TrainingOptions))


def test_every_option_reaches_the_task() -> None:
    config = RunConfig(state_dir="s", initial_adapter="i", **CHANGED)
    task = TrainTask.for_round(config, TEMPLATE, run="run", round_=4, version=3)
    assert pick_training_options(task) == CHANGED
    assert (task.run, task.round, task.version) == ("run", 4, 3)
    assert TrainTask.from_json(task.to_json()) == task


def test_both_ways_of_making_a_task_agree() -> None:
    local = Options(site="s", template="t", out="o", local=True, **CHANGED)
    config = RunConfig(run="local", state_dir="s", initial_adapter="i", **CHANGED)
    asked = build_task(config, TEMPLATE, 4, 3, steps=5, base_fingerprint="f0", merged=(), refused=())
    assert build_local_task(local, TEMPLATE, 4, 5) == asked
    assert asked.steps == 5
    assert asked.quantization == "4bit"


def test_a_round_may_differ_from_the_run() -> None:
    config = RunConfig(state_dir="s", initial_adapter="i", train_timeout=9.0, **CHANGED)
    task = build_task(config, TEMPLATE, 8, 7, steps=0, base_fingerprint="", merged=("ab",), refused=("x",), site="n")
    assert pick_training_options(task) == CHANGED | {"steps": 0}
    assert (task.deadline, task.base_fingerprint) == (9.0, "")
    assert (task.merged, task.refused, task.site) == (("ab",), ("x",), "n")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rounds", 0),
        ("steps", -1),
        ("batch_size", 0),
        ("lr", 0.0),
        ("optimizer", "x"),
        ("optimizer_state", "x"),
        ("codec", "x"),
        ("schedule", "x"),
        ("clip", -1.0),
        ("correction", "x"),
        ("max_length", 0),
    ],
)
def test_options_are_checked_alike_under_the_names_that_users_know(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as of_run:
        RunConfig(state_dir="s", initial_adapter="i", **{name: value})
    assert of_run.value.field == name.replace("_", "-")
    task = TrainTask.for_round(TrainingOptions(**CHANGED), TEMPLATE, run="run", round_=1, version=0)
    with pytest.raises(ConfigError) as of_task:
        replace(task, **{name: value})
    assert of_task.value.field == f"task.{name}".replace("optimizer_state", "optimizer-state")
    assert of_task.value.rule == of_run.value.rule


@pytest.mark.parametrize("name", ["feedback", "feedback_warmup", "feedback_reset", "residual_store"])
def test_settings_of_the_residual_are_checked_together(name: str) -> None:
    value: Any = "x" if name == "residual_store" else -1
    with pytest.raises(ConfigError, match=r"^feedback\."):
        TrainingOptions(**{name: value})
