"""Templates of runs that train the base's own weights: what is written, and which bases are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedcompress.adapters import base_fingerprint, load_template, parse_adapter
from fedcompress.adapters.base_model import BaseModel
from fedcompress.adapters.full import template
from fedcompress.adapters.full.template import write_weights_template
from fedcompress.adapters.template import Template
from fedcompress.config.objective import CausalLM, Classification
from fedcompress.errors import ConfigError
from tests.unit.adapters import sites

pytestmark = pytest.mark.filterwarnings("ignore")
LABELS = Classification(labels=("no", "yes"), head="stock")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sites.llama(tmp_path_factory.mktemp("base") / "llama")


def write(folder: Path, model: Path, call: str, objective: CausalLM | Classification | None = None) -> Template:
    return write_weights_template(folder, BaseModel(path=model), objective or CausalLM(), parse_adapter(call))


def test_a_template_names_the_weights_and_has_none(model: Path, tmp_path: Path) -> None:
    written = write(tmp_path / "t", model, "full(targets=q_proj+norm,freeze=layers.1)")
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == [
        "adapter_config.json",
        "fedcompress.json",
        "layout.json",
    ]
    read = load_template(tmp_path / "t")
    assert read.adapter.layout == written.adapter.layout
    assert (read.name, read.freeze) == ("full", ("layers.1",))
    assert read.base_fingerprint == base_fingerprint(model).hex()
    groups = {t.name: t.group for t in read.adapter.layout.tensors}
    assert groups == {
        "model.layers.0.input_layernorm.weight": "head",
        "model.layers.0.post_attention_layernorm.weight": "head",
        "model.layers.0.self_attn.q_proj.weight": "other",
        "model.norm.weight": "head",
    }
    assert not any(v.any() for v in read.adapter.tensors.values())
    config = json.loads((tmp_path / "t" / "adapter_config.json").read_text())
    assert config["weights"] == {"name": "full", "target_modules": ["q_proj", "norm"]}
    assert config["base_model_name_or_path"] == str(model)


def test_layers_and_subspaces_have_the_same_state_in_every_round(model: Path, tmp_path: Path) -> None:
    layers = write(tmp_path / "layers", model, "layers(k=1,always=embed_tokens)").adapter.layout
    assert {t.name.split(".")[1] for t in layers.tensors} == {"layers", "embed_tokens"}
    assert {t.name.split(".")[2] for t in layers.tensors} == {"0", "1", "weight"}
    subspace = write(tmp_path / "subspace", model, "subspace(rank=4)").adapter.layout
    assert len(subspace.tensors) == 14  # seven matrices in each layer
    assert all(len(t.shape) == 2 and "layers" in t.name for t in subspace.tensors)


def test_sets_that_do_not_fit_the_model(model: Path, tmp_path: Path) -> None:
    for call, message in (
        ("layers(k=3)", "must be at most 2, the layers of this model"),
        ("subspace(rank=17)", r"at most the smaller side of model.layers.0.self_attn.k_proj: \(16, 32\)"),
        ("full(targets=nothing)", "adapter: full: trains nothing of this model"),
        ("full(freeze=weight)", r"trains nothing of this model with freeze=\['weight'\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            write(tmp_path / "t", model, call)
    assert not (tmp_path / "t").exists()


def test_parameters_must_be_in_the_files_as_they_are_in_the_model(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = sites.llama(tmp_path / "llama")
    weights = load_file(changed / "model.safetensors")
    build = template.build_base

    def build_then_change_files(*args: object, **options: object) -> object:
        module = build(*args, **options)  # type: ignore[arg-type]
        weights["model.norm.weight"] = weights["model.norm.weight"] + np.float32(1)
        save_file(weights, changed / "model.safetensors", {"format": "pt"})
        return module

    monkeypatch.setattr(template, "build_base", build_then_change_files)
    with pytest.raises(ConfigError, match=r"cannot train model.norm.weight: the model changes it"):
        write(tmp_path / "t", changed, "full")


def test_a_new_head_of_one_layer_begins_at_zero(model: Path, tmp_path: Path) -> None:
    layout = write(tmp_path / "t", model, "full(targets=score+norm)", LABELS).adapter.layout
    assert layout.by_name["score.weight"].shape == (2, 32)
    assert layout.by_name["score.weight"].group == "head"
