"""PEFT folders, groups, fingerprints and the seeded start."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedcompress.adapters import adapter_digest, base_fingerprint, group_of, load_adapter, save_adapter, seeded_init
from fedcompress.errors import ConfigError, StateError
from fedcompress.types import Layout, TensorSpec, state_digest
from tests.support import ROOT, equal, lora_layout, normal

CONFIG = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": "/somewhere"}


def test_round_trip_is_exact_and_repeatable(tmp_path: Path) -> None:
    layout = lora_layout()
    values = normal(layout, 0)
    for name in ("one", "two"):
        save_adapter(tmp_path / name, CONFIG, layout, values)
    again = load_adapter(tmp_path / "one")
    assert again.config == CONFIG
    assert again.layout == Layout(tuple(sorted(layout.tensors, key=lambda t: t.name)))
    assert equal(again.tensors, dict(sorted(values.items())))
    files = ["adapter_model.safetensors", "adapter_config.json"]
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == sorted(files)


def test_others_read_our_file_and_we_read_theirs(tmp_path: Path) -> None:
    layout = lora_layout()
    values = normal(layout, 0)
    save_adapter(tmp_path, CONFIG, layout, values)
    assert equal(dict(sorted(load_file(tmp_path / "adapter_model.safetensors").items())), dict(sorted(values.items())))
    save_file({"b.lora_A.weight": np.ones((2, 2), np.float16)}, tmp_path / "adapter_model.safetensors")
    adapter = load_adapter(tmp_path)
    assert adapter.layout.tensors[0].dtype == "float16"
    assert (adapter.tensors["b.lora_A.weight"] == 1).all()


def test_bfloat16_as_torch_writes_it(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    values = {"x.lora_A.weight": torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()}
    save_torch(values, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    adapter = load_adapter(tmp_path)
    assert (adapter.tensors["x.lora_A.weight"] == values["x.lora_A.weight"].float().numpy()).all()
    save_adapter(tmp_path / "again", {}, adapter.layout, adapter.tensors)
    again = load_torch(tmp_path / "again" / "adapter_model.safetensors")
    assert torch.equal(again["x.lora_A.weight"], values["x.lora_A.weight"])


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"adapter_config.json: must exist"):
        load_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"adapter_model.safetensors: must exist"):
        load_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(StateError, match="does not parse"):
        load_adapter(tmp_path)
    save_file({"w": np.ones(3, np.int32)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"adapter.w.dtype: I32"):
        load_adapter(tmp_path)


@pytest.mark.parametrize("text", ["[1]", "3", "null", "{", "[" * 100_000])
def test_config_is_an_object(tmp_path: Path, text: str) -> None:
    save_adapter(tmp_path, CONFIG, lora_layout(), normal(lora_layout(), 0))
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(StateError, match="does not parse"):
        load_adapter(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_values_beyond_a_narrow_dtype_become_its_ends(tmp_path: Path, dtype: str) -> None:
    layout = Layout((TensorSpec(name="w", shape=(4,), dtype=dtype, group="head"),))
    largest = float(np.finfo(np.float32).max)
    save_adapter(tmp_path, {}, layout, {"w": np.array([largest, -largest, 1.5, -0.0], np.float32)})
    loaded = load_adapter(tmp_path).tensors["w"]
    end = {"float16": 65504.0, "bfloat16": 255 * 2.0**120}[dtype]
    assert loaded.tolist() == [end, -end, 1.5, 0.0]


def test_an_odd_layout_has_a_seeded_start() -> None:
    shapes: list[tuple[int, ...]] = [(), (0, 3), (3, 0), (5,), (2, 2, 2)]
    specs = [TensorSpec(name=f"\u00e4{i}.lora_A", shape=s, group="lora_a") for i, s in enumerate(shapes)]
    layout = Layout(tuple(specs))
    start = seeded_init(layout, (1 << 64) - 1)
    layout.check(start, what="start")
    assert abs(float(start["\u00e40.lora_A"])) <= 1


def test_digest_of_the_config_is_about_the_maths() -> None:
    moved = {**CONFIG, "base_model_name_or_path": "elsewhere", "inference_mode": True}
    assert adapter_digest(CONFIG) == adapter_digest(dict(reversed(moved.items())))
    assert adapter_digest(CONFIG) != adapter_digest({**CONFIG, "r": 8})


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("base_model.model.q.lora_A.weight", "lora_a"),
        ("base_model.model.q.lora_B.weight", "lora_b"),
        ("base_model.model.e.lora_embedding_A", "lora_a"),
        ("base_model.model.e.lora_embedding_B", "lora_b"),
        ("base_model.model.classifier.weight", "head"),
        ("base_model.model.lora_Alpha.weight", "head"),
    ],
)
def test_groups(name: str, group: str) -> None:
    assert group_of(name) == group


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.path: .* must be a folder with weights"):
        base_fingerprint(tmp_path)
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        save_file({"w": np.ones(3, np.float32)}, tmp_path / place / "model.safetensors")
    assert base_fingerprint(tmp_path / "a") == base_fingerprint(tmp_path / "b")
    save_file({"w": np.zeros(3, np.float32)}, tmp_path / "b" / "model.safetensors")
    assert base_fingerprint(tmp_path / "a") != base_fingerprint(tmp_path / "b")


def test_seeded_start() -> None:
    layout = lora_layout(modules=1, rank=8, width=400)
    start = seeded_init(layout, 5)
    a = start["m0.lora_A.weight"]
    bound = 1 / np.sqrt(400)
    assert all((v == 0).all() for n, v in start.items() if n != "m0.lora_A.weight")
    assert np.abs(a).max() <= bound
    assert np.abs(a).max() > 0.99 * bound
    assert abs(float(a.mean())) < 0.05 * bound
    assert float(a.var()) == pytest.approx(bound**2 / 3, rel=0.05)
    assert state_digest(layout, start) == state_digest(layout, seeded_init(layout, 5))
    assert state_digest(layout, start) != state_digest(layout, seeded_init(layout, 6))


def test_seeded_start_is_frozen_for_ever() -> None:
    """Values on every machine and with every later numpy: h_0 is not sent, only its seed."""
    layout = Layout((TensorSpec(name="m.lora_A.weight", shape=(2, 3), group="lora_a"),))
    values = seeded_init(layout, 7)["m.lora_A.weight"]
    golden = json.loads((ROOT / "tests" / "golden" / "seeded_init.json").read_text())
    assert [float(v).hex() for v in values.ravel()] == golden["values"]


def test_a_fingerprint_is_kept_while_the_files_are_the_same(tmp_path: Path) -> None:
    model, cache = tmp_path / "model", tmp_path / "state" / "fingerprint.json"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"one")
    first = base_fingerprint(model, cache)
    assert first == base_fingerprint(model)
    kept = json.loads(cache.read_text())
    cache.write_text(json.dumps({**kept, "digest": "ab" * 32}))
    assert base_fingerprint(model, cache).hex() == "ab" * 32, "the files were read again"
    (model / "model.safetensors").write_bytes(b"two!")
    assert base_fingerprint(model, cache) not in (first, bytes.fromhex("ab" * 32))
    cache.write_text("{")
    assert base_fingerprint(model, cache) == base_fingerprint(model)
