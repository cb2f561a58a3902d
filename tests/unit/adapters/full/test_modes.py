"""Trainable sets: what a user may name, what a config keeps of it, and which layers a round draws."""

from __future__ import annotations

import json

import pytest

from fedcompress.adapters import parse_adapter
from fedcompress.adapters.full import (
    Full,
    Layers,
    Subspace,
    TrainableSet,
    draw_round_layers,
    load_trainable_set,
    parse_trainable_set,
    trains_base_weights,
)
from fedcompress.adapters.full.modes import trainable_set_config
from fedcompress.errors import ConfigError


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("full", Full()),
        ("full(targets=q_proj+v_proj)", Full(target_modules=("q_proj", "v_proj"))),
        ("layers", Layers()),
        ("layers(k=3,always=embed_tokens+lm_head)", Layers(k=3, always=("embed_tokens", "lm_head"))),
        ("subspace", Subspace(rank=16, basis="random", refresh="round")),
        ("subspace(rank=4,basis=dct,targets=all-linear)", Subspace(rank=4, basis="dct")),
    ],
)
def test_a_call_is_a_trainable_set_and_survives_a_config(call: str, expected: TrainableSet) -> None:
    trainable_set = parse_trainable_set(parse_adapter(call))
    assert trainable_set == expected
    config = json.loads(json.dumps(trainable_set_config(trainable_set)))
    assert trains_base_weights(config)
    assert load_trainable_set(config) == expected


def test_a_peft_config_has_no_trainable_set() -> None:
    assert not trains_base_weights({"peft_type": "LORA", "r": 4})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("full(r=4)", r"adapter.full: r: unknown key: must be one of \['target_modules'\]"),
        ("layers(k=0)", "adapter.layers.k: 0: must be a number of layers, 1 or more"),
        ("layers(k=true)", "adapter.layers.k: True: must be a number"),
        ("layers(k=1.5)", "adapter.layers.k: 1.5: must be a number"),
        ("subspace(rank=0)", "adapter.subspace.rank: 0: must be from 1 to 4096"),
        ("subspace(rank=4097)", "adapter.subspace.rank: 4097: must be from 1 to 4096"),
        ("subspace(basis=svd)", r"adapter.subspace.basis: svd: must be one of \['random', 'dct'\]"),
        ("subspace(refresh=never)", r"adapter.subspace.refresh: never: must be one of \['round'\]"),
    ],
)
def test_bad_calls_are_refused_by_key(call: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_trainable_set(parse_adapter(call))


def test_configs_of_other_versions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"adapter.weights: heads: must be one of \['full', 'layers', 'subspace'\]"):
        load_trainable_set({"weights": {"name": "heads"}})
    with pytest.raises(ConfigError, match=r"adapter.layers: .*has a key that this version does not know"):
        load_trainable_set({"weights": {"name": "layers", "k": 2, "every": 3}})


def test_layers_are_drawn_from_seed_and_round_alone() -> None:
    draws = [draw_round_layers(Layers(k=3), 12, seed=7, round_=r) for r in range(200)]
    assert draws == [draw_round_layers(Layers(k=3), 12, seed=7, round_=r) for r in range(200)]
    assert draws[:3] == [[0, 2, 4], [2, 3, 8], [6, 8, 11]]  # on every machine
    assert all(draw == sorted(set(draw)) and len(draw) == 3 for draw in draws)
    counts = [sum(layer in draw for draw in draws) for layer in range(12)]
    assert min(counts) > 25  # 50 are expected of each layer
    assert draws != [draw_round_layers(Layers(k=3), 12, seed=8, round_=r) for r in range(200)]


def test_no_more_layers_are_drawn_than_there_are() -> None:
    assert draw_round_layers(Layers(k=4), 4, seed=0, round_=1) == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match=r"adapter.layers.k: 5: must be at most 4, the layers of this model"):
        draw_round_layers(Layers(k=5), 4, seed=0, round_=1)
