"""Adapter configs that are received: which fields, with which values, PEFT is given."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import pytest

from fedcompress.adapters.table import ADAPTERS
from fedcompress.config.adapter_fields import FIELDS, KINDS, TYPES, check_adapter_config
from fedcompress.errors import ConfigError

LORA: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


def test_the_tables_are_those_of_the_adapters_and_of_peft() -> None:
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    assert set(TYPES) == {row.peft for row in ADAPTERS.values() if row.peft}
    known = {f.name for t in TYPES for f in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(t)])}
    assert set(FIELDS) <= known | {"init_weights", "mask_type"}
    assert set(FIELDS.values()) <= set(KINDS)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": "all-linear"},
        {"target_modules": None, "target_parameters": ["mlp.experts.down_proj"]},
        {"rank_pattern": {"q_proj": 8, "layers.0.k_proj": 2, r"^model\.layers\.0\.k_proj$": 4}, "alpha_pattern": {}},
        {"init_lora_weights": "pissa_niter_16", "bias": "none", "modules_to_save": ["classifier", "score"]},
        {"trainable_token_indices": {"embed_tokens": [1, 2]}, "layers_to_transform": 3},
        {"layer_replication": [[0, 4], [2, 5]], "loftq_config": {}, "runtime_config": {"ephemeral_gpu_offload": False}},
        {"base_model_name_or_path": "/models/base", "revision": "main", "megatron_core": "megatron.core"},
        {"use_dora": True, "lora_dropout": 0.1, "layers_pattern": None},
    ],
)
def test_allowed(changes: dict[str, Any]) -> None:
    config = {**LORA, **changes}
    assert check_adapter_config(json.dumps(config)) == config


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"peft_type": "XLORA"}, "adapter_config.peft_type: XLORA"),
        ({"peft_type": ["LORA"]}, "adapter_config.peft_type"),
        ({"adapters": {"x": "folder"}}, "adapter_config: adapters: is not a field"),
        ({"target_modules": ".*proj"}, r"adapter_config.target_modules: \"\.\*proj\": must be a list of plain names"),
        ({"target_modules": ["q_proj", "v.*"]}, "adapter_config.target_modules"),
        ({"exclude_modules": "(x+)+y"}, "adapter_config.exclude_modules"),
        ({"layers_pattern": "(x|y)"}, "adapter_config.layers_pattern"),
        ({"modules_to_save": "score"}, "adapter_config.modules_to_save"),
        ({"rank_pattern": {"(x+)+": 4}}, "adapter_config.rank_pattern"),
        ({"rank_pattern": {"q_proj": "4"}}, "adapter_config.rank_pattern"),
        ({"alpha_pattern": {"q" * 301: 4}}, "adapter_config.alpha_pattern"),
        ({"tokenizer_name_or_path": "folder"}, "must be null: a task cannot name files"),
        ({"prompt_tuning_init_text": "words"}, "adapter_config.prompt_tuning_init_text"),
        ({"megatron_config": {"a": 1}}, "adapter_config.megatron_config"),
        ({"corda_config": {"cache_file": "file"}}, "adapter_config.corda_config"),
        ({"init_lora_weights": "folder/file"}, "adapter_config.init_lora_weights"),
        ({"eva_config": {"path": "a/b"}}, "adapter_config.eva_config"),
        ({"r": float("inf")}, "adapter_config.r"),
        ({"r": float("nan")}, "adapter_config.r"),
        ({"r": 1e300}, "adapter_config.r"),
        ({"r": "8"}, "adapter_config.r"),
        ({"use_dora": "yes"}, "adapter_config.use_dora"),
        ({"layers_to_transform": [1.5]}, "adapter_config.layers_to_transform"),
        ({"target_modules": ["x"] * 10_001}, "adapter_config.target_modules"),
        ({"weights": {"name": "full", "target_modules": [".*"]}}, "adapter_config.weights"),
        ({"weights": {"name": "full"}}, "adapter_config: lora_alpha: is not a field"),
    ],
)
def test_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        check_adapter_config(json.dumps({**LORA, **changes}))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"a": 1}', " " * (1 << 20) + "{}"])
def test_what_is_no_config(text: str) -> None:
    with pytest.raises(ConfigError, match="adapter_config"):
        check_adapter_config(text)


def test_a_long_name_is_checked_in_linear_time() -> None:
    started = time.process_time()
    with pytest.raises(ConfigError):
        check_adapter_config(json.dumps({**LORA, "rank_pattern": {"a." * 200_000 + "!": 1}}))
    assert time.process_time() - started < 1.0
