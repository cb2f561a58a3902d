"""Trained weights as a model folder, and what a coordinator checks before it begins a run of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedcompress.adapters import Adapter, Template
from fedcompress.adapters.full.export import HEAD, MODEL, check_run, export_model, export_run
from fedcompress.config.objective import CausalLM, Classification, Objective
from fedcompress.errors import ConfigError
from fedcompress.types import Array, Layout, TensorSpec, zeros
from tests.support import normal

CHECKPOINT = "layers.0.q.weight"  # as the base's file names it
TRAINED = f"model.{CHECKPOINT}"  # as the model does
POOLED = Classification(labels=("no", "yes"), head="mean-pool-linear")
STOCK = Classification(labels=("no", "yes"), head="stock")


def values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    tensors = {CHECKPOINT: values(6, 4), "norm.weight": values(4, seed=1), "tied.weight": values(3, 4, seed=2)}
    save_file({**tensors, "half": values(5, seed=3).astype(np.float16), "ids": np.arange(3)}, folder / MODEL)
    (folder / "config.json").write_text(json.dumps({"model_type": "x", "torch_dtype": "bfloat16"}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def template(base: Path, objective: Objective, *, weights: object = None, head: bool = False) -> Template:
    specs = [TensorSpec(name=TRAINED, shape=(6, 4))]
    if head:
        specs.append(TensorSpec(name="score.weight", shape=(2, 4), group="head"))
    layout = Layout(tuple(specs))
    config = {
        "weights": weights or {"name": "full", "target_modules": []},
        "tied": ["model.tied.weight"],
        "base_model_name_or_path": str(base),
    }
    return Template(adapter=Adapter(config=config, layout=layout, tensors=zeros(layout)), objective=objective)


def test_base_plus_state_under_the_names_of_the_model(base: Path, tmp_path: Path) -> None:
    start = template(base, CausalLM())
    state = normal(start.adapter.layout, 5)
    export_run(tmp_path / "out", start, state, {})
    exported = load_file(tmp_path / "out" / MODEL)
    assert set(exported) == {TRAINED, "model.norm.weight", "model.half"}  # tied and integer tensors are left out
    assert np.array_equal(exported[TRAINED], values(6, 4) + state[TRAINED])
    assert np.array_equal(exported["model.norm.weight"], values(4, seed=1))
    assert np.array_equal(exported["model.half"], values(5, seed=3).astype(np.float16).astype(np.float32))
    assert exported["model.half"].dtype == np.float32
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"model_type": "x", "dtype": "float32"}
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


def test_slices_are_joined(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = template(base, CausalLM())
    state = normal(start.adapter.layout, 5)
    export_model(tmp_path / "whole", start, state)
    monkeypatch.setattr("fedcompress.adapters.full.export.ROUND_CHUNK_ENTRIES", 5)
    export_model(tmp_path / "cut", start, state)
    assert (tmp_path / "whole" / MODEL).read_bytes() == (tmp_path / "cut" / MODEL).read_bytes()


def test_a_new_stock_head_is_in_the_model(base: Path, tmp_path: Path) -> None:
    start = template(base, STOCK, head=True)
    state = normal(start.adapter.layout, 5)
    export_model(tmp_path / "out", start, state)
    exported = load_file(tmp_path / "out" / MODEL)
    assert np.array_equal(exported["score.weight"], state["score.weight"])
    assert not (tmp_path / "out" / HEAD).exists()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["id2label"], config["label2id"]) == ({"0": "no", "1": "yes"}, {"no": 0, "yes": 1})


def test_a_pooled_head_has_a_file_and_the_encoder_its_own_names(base: Path, tmp_path: Path) -> None:
    start = template(base, POOLED, head=True)
    state = normal(start.adapter.layout, 5)
    export_model(tmp_path / "out", start, state)
    assert set(load_file(tmp_path / "out" / MODEL)) == {CHECKPOINT, "norm.weight", "half"}
    head = load_file(tmp_path / "out" / HEAD)
    assert list(head) == ["score.weight"]
    assert np.array_equal(head["score.weight"], state["score.weight"])


def test_a_run_needs_the_base_where_it_was(base: Path, tmp_path: Path) -> None:
    start = template(base, CausalLM())
    check_run(start, "none", "none")
    shutil.move(base, tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"initial-adapter: .*must be the base model's folder"):
        check_run(start, "none", "none")
    with pytest.raises(ConfigError, match=r"initial-adapter: .*must be the base model's folder"):
        export_run(tmp_path / "out", start, start.adapter.tensors, {})
    assert not (tmp_path / "out").exists()


def test_codecs_of_a_subspace_are_those_of_its_rank_and_basis(base: Path) -> None:
    start = template(base, CausalLM(), weights={"name": "subspace", "rank": 4, "basis": "dct", "refresh": "round"})
    good = "subspace(rank=4,basis=dct,bits=8)"
    check_run(start, good, good)
    for codec, downlink, field in (
        ("none", good, "codec"),
        (good, "subspace(rank=4)", "downlink-codec"),
        ("subspace(rank=5,basis=dct)", good, "codec"),
    ):
        rule = rf"^{field}: .*must be subspace\(rank=4,basis=dct\), with bits as you like"
        with pytest.raises(ConfigError, match=rule):
            check_run(start, codec, downlink)


def test_a_run_of_an_adapter_needs_neither(tmp_path: Path) -> None:
    layout = Layout(())
    adapter = Adapter(config={"peft_type": "LORA"}, layout=layout, tensors={})
    check_run(Template(adapter=adapter, objective=CausalLM()), "none", "none")
