"""Which modules a config names, against PEFT's own function."""

from __future__ import annotations

from typing import Any

import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from fedcompress.files.merge.targets import targets_module, targets_parameter

NAMES = [f"model.layers.{i}.{part}.{leaf}" for i in (0, 1, 11) for part in ("attn", "mlp") for leaf in ("q", "v", "up")]
NAMES += ["q", "head", "model.head", "model.layers.1.experts.0.q", "q.v", "blocks.1.q"]


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q", "v"]},
        {"target_modules": ["attn.q", "head"]},
        {"target_modules": r".*\.(1|11)\.attn\.(q|v)"},
        {"target_modules": ["q"], "exclude_modules": ["attn.q"]},
        {"target_modules": ["q"], "exclude_modules": r".*layers\.0.*"},
        {"target_modules": ["q", "head"], "modules_to_save": ["head"]},
        {"target_modules": ["q", "up"], "layers_to_transform": [1]},
        {"target_modules": ["q", "up"], "layers_to_transform": 11},
        {"target_modules": ["q", "up"], "layers_to_transform": [0, 1], "layers_pattern": "layers"},
        {"target_modules": ["q"], "layers_to_transform": [1], "layers_pattern": ["blocks", "layers"]},
        {"target_modules": []},
    ],
)
def test_modules_are_named_as_in_peft(options: dict[str, Any]) -> None:
    config = LoraConfig(**options)
    theirs = [n for n in NAMES if check_target_module_exists(config, n)]
    assert [n for n in NAMES if targets_module(options, n)] == theirs
    assert bool(theirs) == bool(options["target_modules"])


def test_parameters_are_named_by_the_end_of_their_name() -> None:
    config = {"target_parameters": ["experts.up", "gate.weight"]}
    assert targets_parameter(config, "l.0.experts.up")
    assert targets_parameter(config, "gate.weight")
    assert not targets_parameter(config, "l.xgate.weight")
    assert not targets_parameter({}, "gate.weight")
