"""Tasks from the wire with fields of a wrong type; numbers out of range."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fedcompress.config.run_config import RunConfig, parse_run_config
from fedcompress.config.train_task import TrainTask
from fedcompress.errors import ConfigError
from fedcompress.merging.server_optim import Sgd
from tests.support import ROOT
from tests.unit.config.test_train_task import TASK


@pytest.mark.parametrize(
    "changes",
    [
        {"codec": 5},
        {"run": 5},
        {"optimizer": []},
        {"layout": 3},
        {"adapter_config": {}},
        {"batch_size": 2.5},
        {"version": 1.5},
        {"version": -1},
        {"round": True},
        {"seed": "x"},
        {"lr": "0.1"},
        {"lr": float("inf")},
        {"lr": float("nan")},
        {"feedback": None},
        {"objective": ["a", 1]},
        {"freeze": "ab"},
        {"merged": [1]},
        {"merged": {"a": 1}},
        {"protocol": "1"},
    ],
    ids=str,
)
def test_wrong_types_are_config_errors(changes: dict[str, Any]) -> None:
    raw = json.loads(TASK.to_json()) | changes
    with pytest.raises(ConfigError, match=next(iter(changes))):
        TrainTask.from_json(json.dumps(raw))


def test_integers_are_numbers() -> None:
    raw = json.loads(TASK.to_json()) | {"lr": 1, "feedback": 0}
    assert TrainTask.from_json(json.dumps(raw)).lr == 1


@pytest.mark.parametrize("text", ["[" * 100_000, "null", '"a"', "3", "[[]]"])
def test_not_an_object(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^task: "):
        TrainTask.from_json(text)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1 << 64}, r"seed: .*: must be below 2\^64"),
        ({"seed": -1}, "seed: -1: must be >= 0"),
        ({"lr": float("inf")}, "lr: inf: must be finite"),
        ({"lr": float("nan")}, "lr: nan: must be above 0"),
        ({"server-lr": float("inf")}, "server-lr: inf: must be finite"),
    ],
)
def test_numbers_out_of_range(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_run_config({**FLAT, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weighting": "size"}, "weighting: size: must be one of"),
        ({"weighting": "given"}, r"weighting\.given: given: needs sites"),
        ({"server-optimizer": "lion"}, "server-optimizer: lion: must be one of"),
        ({"server-optimizer": "adam(tau=0)"}, r"server-optimizer\.adam\.tau"),
        ({"server-optimizer": "adam", "server-lr": 0.5}, "server-lr: 0.5: must be 1 with server-optimizer adam"),
        ({"server-optimizer": "sgd(lr=0.1)", "server-lr": 0.5}, r"must be 1 with server-optimizer sgd\(lr=0.1\)"),
    ],
)
def test_bad_weightings_and_server_optimizers(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_run_config({**FLAT, **changes})


def test_the_server_learning_rate_is_that_of_sgd() -> None:
    assert parse_run_config({**FLAT, "server-lr": 0.5}).outer == Sgd(lr=0.5)
    assert parse_run_config({**FLAT, "server-optimizer": "sgd(lr=0.5)"}).outer == Sgd(lr=0.5)
    assert parse_run_config(FLAT).outer == Sgd(lr=1.0)
    assert parse_run_config({**FLAT, "server-optimizer": "adam(lr=0.5)"}).outer.name == "adam"


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("optimizer", "galore(rank=0)", "above 0"),
        ("optimizer", "schedule-free", "does not outlive a round"),
        ("optimizer_state", "forget", "must be one of"),
    ],
)
def test_optimizers_are_checked_before_a_site_sees_them(key: str, value: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        RunConfig(**{"state_dir": "x", "initial_adapter": "x", key: value})


def test_the_quorum_is_enough_for_krum() -> None:
    fields = {"state_dir": "x", "initial_adapter": "x", "rule": "multi-krum(malicious=2)"}
    with pytest.raises(ConfigError, match="at least 7"):
        RunConfig(**fields, quorum=6)
    RunConfig(**fields, quorum=7)


FLAT = {"run": "r", "state-dir": "s", "initial-adapter": "i"}


def test_run_config_matches_pyproject() -> None:
    """The app's defaults are the library's; Flower can override only keys that are listed."""
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    config = parse_run_config({**listed, **FLAT})
    assert config == RunConfig(run="r", state_dir="s", initial_adapter="i")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"roundz": 3}, "roundz: 3: unknown key"),
        ({"rounds": "3"}, "rounds: '3': must be of type int"),
        ({"rounds": True}, "rounds: True: must be of type int"),
        ({"rounds": 0}, "rounds: 0: must be above 0"),
        ({"quorum": 0}, "quorum: 0"),
        ({"codec": "zip"}, "codec: zip"),
        ({"downlink-codec": "zip"}, "downlink-codec: zip"),
        ({"rule": "tiers"}, "rule: tiers"),
        ({"optimizer": "x"}, "optimizer: x"),
        ({"initial-adapter": ""}, "initial-adapter: '': must be set"),
        ({"schedule": "linear(warmup=-1)"}, "schedule.warmup"),
        ({"run": "a b"}, "run: 'a b'"),
    ],
)
def test_bad_run_configs(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_run_config({**FLAT, **changes})


@pytest.mark.parametrize(
    ("rule", "codec", "told"),
    [
        ("median", "topk(density=0.05)|ternary", "have no majority"),
        ("pcb(ratio=0.2)", "compeft", "one magnitude"),
        ("dare", "lora:topk(density=0.1)|ternary; head:int8", "drops what a codec has left"),
        ("median", "lora-transform", ""),
        ("mean", "topk(density=0.05)|ternary", ""),
        ("lora-ridge", "compeft", ""),
    ],
)
def test_a_rule_that_a_codec_spoils_is_told_before_the_first_round(rule: str, codec: str, told: str) -> None:
    config = RunConfig(run="run", state_dir="x", initial_adapter="x", rule=rule, codec=codec)
    assert (told in " ".join(config.warnings)) if told else not config.warnings
