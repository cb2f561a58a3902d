"""Adapters of each PEFT type as files without a base: what PEFT makes of them before and after, on its own weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedcompress import errors
from fedcompress.adapters.safetensors_io import open_source
from fedcompress.files import decode_file, encode_file, inspect_file
from fedcompress.files.effect.units import find_effects

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's, about options that are tested here
TARGETS = ["first", "second"]
# Type -> its config, and the largest relative error of the change at 6 bits. Types that are exact have none.
TYPES: dict[str, tuple[str, dict[str, Any], float]] = {
    "lora": ("LoraConfig", {"r": 4}, 0.05),
    "rslora": ("LoraConfig", {"r": 4, "use_rslora": True, "rank_pattern": {"second": 2}, "lora_alpha": 3}, 0.05),
    "patterns": ("LoraConfig", {"r": 4, "rank_pattern": {"first": 8}, "alpha_pattern": {"second": 64}}, 0.05),
    "bias": ("LoraConfig", {"r": 4, "lora_bias": True}, 0.05),
    "base-bias": ("LoraConfig", {"r": 4, "bias": "all"}, 0.05),
    "head": ("LoraConfig", {"r": 4, "modules_to_save": ["head"]}, 0.05),
    "dora": ("LoraConfig", {"r": 4, "use_dora": True}, 0.1),
    "wide": ("LoraConfig", {"r": 40, "target_modules": ["first", "head"]}, 0.05),
    "conv": ("LoraConfig", {"r": 4, "target_modules": ["conv", "first"]}, 0.05),
    "embedding": ("LoraConfig", {"r": 4, "target_modules": ["tokens", "first"]}, 0.05),
    "adalora": ("AdaLoraConfig", {"init_r": 4, "target_r": 4, "total_step": 1}, 0.05),
    "loha": ("LoHaConfig", {"r": 4, "alpha": 16}, 0.08),
    "lokr": ("LoKrConfig", {"r": 2, "alpha": 16}, 0.15),
    "lokr-both": ("LoKrConfig", {"r": 2, "alpha": 16, "decompose_both": True}, 0.2),
    "hira": ("HiraConfig", {"r": 4}, 0.08),
    "vera": ("VeraConfig", {"r": 16, "target_modules": ["first"]}, 0.1),
    "vera-without-projections": ("VeraConfig", {"r": 16, "target_modules": ["first"], "save_projection": False}, 0.1),
    "ia3": ("IA3Config", {"feedforward_modules": ["second"]}, 0.1),
    "miss": ("MissConfig", {"r": 4}, 0.05),
    "fourierft": ("FourierFTConfig", {"n_frequency": 40}, 0.06),
    "c3a": ("C3AConfig", {"block_size": 8}, 0.05),
    "oft": ("OFTConfig", {"oft_block_size": 8}, 0.1),
    "boft": ("BOFTConfig", {"boft_block_size": 4}, 0.1),
    "road": ("RoadConfig", {"group_size": 8}, 0.1),
    "hra": ("HRAConfig", {"r": 4}, 0.0),
    "randlora": ("RandLoraConfig", {"r": 4, "target_modules": ["first"]}, 0.0),
    "gralora": ("GraloraConfig", {"r": 4, "gralora_k": 2}, 0.0),
    "ln-tuning": ("LNTuningConfig", {"target_modules": ["norm"]}, 0.0),
    "trainable-tokens": ("TrainableTokensConfig", {"target_modules": ["tokens"], "token_indices": [1, 5]}, 0.0),
    "pissa": ("LoraConfig", {"r": 4, "init_lora_weights": "pissa"}, 0.0),
}
# Types whose printed error is that of the weights, and not of what they are nearly proportional to.
EQUAL = ("lora", "rslora", "patterns", "wide", "conv", "embedding", "adalora", "loha", "lokr", "lokr-both", "miss")


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = torch.nn.Embedding(40, 32)
        self.first = torch.nn.Linear(32, 48)
        self.second = torch.nn.Linear(48, 32)
        self.norm = torch.nn.LayerNorm(32)
        self.conv = torch.nn.Conv2d(3, 16, 3)
        self.head = torch.nn.Linear(32, 5)


def save_trained(path: Path, kind: str, dtype: Any = torch.float32) -> None:
    """An adapter that has moved a little from its start."""
    name, options, _ = TYPES[kind]
    model = peft.get_peft_model(Net(), getattr(peft, name)(**{"target_modules": TARGETS, **options}))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    model.to(dtype).save_pretrained(path)


def merged(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Weights of the model with an adapter, as PEFT merges them."""
    torch.manual_seed(2)
    model = peft.PeftModel.from_pretrained(Net(), path).merge_and_unload()
    return {n: v.detach().double().numpy() for n, v in model.state_dict().items()}


def relative_error(before: Path, after: Path) -> float:
    base = {n: v.detach().double().numpy() for n, v in Net().state_dict().items()}
    x, y = merged(before), merged(after)
    lost = sum(float(np.square(x[n] - y[n]).sum()) for n in x)
    change = sum(float(np.square(x[n] - base[n]).sum()) for n in x if n in base)
    return math.sqrt(lost / change)


@pytest.mark.parametrize("kind", TYPES)
def test_a_type_keeps_its_effect(tmp_path: Path, kind: str) -> None:
    save_trained(tmp_path / "a", kind)
    facts = encode_file(tmp_path / "a", tmp_path / "a.fcu", budget="6")
    decode_file(tmp_path / "a.fcu", tmp_path / "b")
    names = load_file(tmp_path / "a" / "adapter_model.safetensors")
    again = load_file(tmp_path / "b" / "adapter_model.safetensors")
    assert {n: (v.shape, v.dtype) for n, v in names.items()} == {n: (v.shape, v.dtype) for n, v in again.items()}
    error = relative_error(tmp_path / "a", tmp_path / "b")
    assert error <= TYPES[kind][2]
    assert (error > 0) == (TYPES[kind][2] > 0) == (facts["coded_parameters"] > 0)
    if kind in EQUAL:
        assert math.isclose(facts["error"], error, rel_tol=1e-2)
    measured = inspect_file(tmp_path / "a.fcu", reference=tmp_path / "a")
    assert (measured["captured"], measured["error"]) == (facts["captured"], facts["error"])


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("codec", ["transform(budget=0.28)", "int(bits=4)", "compeft", "topk(density=0.05)|ternary"])
def test_no_type_becomes_worse_than_nothing(tmp_path: Path, kind: str, codec: str) -> None:
    save_trained(tmp_path / "a", kind)
    facts = encode_file(tmp_path / "a", tmp_path / "a.fcu", codec=codec)
    decode_file(tmp_path / "a.fcu", tmp_path / "b")
    assert relative_error(tmp_path / "a", tmp_path / "b") <= 1.005
    assert facts["error"] <= 1.0005


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("codec", ["none", "bf16"])
def test_codes_that_round_leave_factors_as_they_are(tmp_path: Path, kind: str, codec: str) -> None:
    save_trained(tmp_path / "a", kind, torch.float32 if codec == "none" else torch.bfloat16)
    facts = encode_file(tmp_path / "a", tmp_path / "a.fcu", codec=codec)
    decode_file(tmp_path / "a.fcu", tmp_path / "b")
    before, after = (tmp_path / f / "adapter_model.safetensors" for f in "ab")
    source, found = open_source(tmp_path / "a"), open_source(tmp_path / "b")
    assert source.layout == found.layout
    assert (facts["captured"], facts["error"]) == (1, 0)
    assert before.read_bytes()[-source.layout.numel :] == after.read_bytes()[-source.layout.numel :]


def test_prompts_are_values(tmp_path: Path) -> None:
    values = {"prompt_embeddings": np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32)}
    tmp_path.joinpath("adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}')
    save_file(values, tmp_path / "adapter_model.safetensors")
    facts = encode_file(tmp_path, tmp_path / "a.fcu", codec="int(bits=8)")
    assert 0 < facts["error"] < 0.02
    assert facts["exact"] == []


@pytest.mark.parametrize(("down", "up"), [("lora_down", "lora_up"), ("lora.down", "lora.up")])
def test_files_of_other_trainers(tmp_path: Path, down: str, up: str) -> None:
    """Their alphas are scalars, which a lossy code would make 0: exact, and they weigh the modules."""
    draw = np.random.default_rng(0)
    values = {}
    for name, alpha in (("te_a", 1.0), ("unet_b", 16.0)):
        values[f"{name}.alpha"] = np.array(alpha, np.float16)
        values[f"{name}.{down}.weight"] = draw.uniform(-1, 1, (4, 64, 3, 3)).astype(np.float16)
        values[f"{name}.{up}.weight"] = (0.01 * draw.standard_normal((96, 4, 1, 1))).astype(np.float16)
    save_file(values, tmp_path / "a.safetensors")
    facts = encode_file(tmp_path / "a.safetensors", tmp_path / "a.fcu", budget="1")
    decode_file(tmp_path / "a.fcu", tmp_path / "b.safetensors")
    found = load_file(tmp_path / "b.safetensors")
    lost, energy = 0.0, 0.0
    for name in ("te_a", "unet_b"):
        assert found[f"{name}.alpha"] == values[f"{name}.alpha"]
        products = [
            float(x[f"{name}.alpha"])
            / 4
            * x[f"{name}.{up}.weight"].astype(float).reshape(96, 4)
            @ x[f"{name}.{down}.weight"].astype(float).reshape(4, -1)
            for x in (values, found)
        ]
        lost += float(np.square(products[0] - products[1]).sum())
        energy += float(np.square(products[0]).sum())
    assert math.isclose(facts["error"], math.sqrt(lost / energy), rel_tol=1e-3)
    assert facts["error"] < 0.75
    assert facts["worst_module"] == "te_a"  # of small alpha, so that its errors count least


def test_experts_in_one_tensor_are_products_of_their_own(tmp_path: Path) -> None:
    """As PEFT reads them: A (experts, rank, in), B (out, rank, experts)."""
    draw = np.random.default_rng(0)
    experts, rank, width, out = 4, 2, 40, 56
    a = draw.uniform(-1, 1, (experts, rank, width))
    b = 0.01 * draw.standard_normal((out, rank, experts)) * np.array([1, 3, 9, 27])
    name = "base_model.model.layers.0.mlp.experts"
    values = {f"{name}.lora_A.weight": a.reshape(-1, width), f"{name}.lora_B.weight": b.reshape(out, -1)}
    save_file({n: v.astype(np.float32) for n, v in values.items()}, tmp_path / "adapter_model.safetensors")
    config = f'{{"peft_type": "LORA", "r": {rank}, "lora_alpha": 2, "target_parameters": ["mlp.experts.down_proj"]}}'
    tmp_path.joinpath("adapter_config.json").write_text(config)
    effects = find_effects(open_source(tmp_path))
    assert effects is not None
    assert {u.experts for u in effects.units.values()} == {experts}
    facts = encode_file(tmp_path, tmp_path / "a.fcu", budget="3")
    decode_file(tmp_path / "a.fcu", tmp_path / "b")
    found = load_file(tmp_path / "b" / "adapter_model.safetensors")
    after_a = found[f"{name}.lora_A.weight"].reshape(experts, rank, width)
    after_b = found[f"{name}.lora_B.weight"].reshape(out, rank, experts)
    x, y = (np.einsum("ore,eri->eoi", left, right) for left, right in ((b, a), (after_b, after_a)))
    assert math.isclose(facts["error"], float(np.linalg.norm(x - y) / np.linalg.norm(x)), rel_tol=1e-3)
    assert facts["error"] < 0.2


def test_experts_of_unknown_ranks_are_exact(tmp_path: Path) -> None:
    values = {
        f"m.mlp.experts.base_layer.lora_{x}.weight": np.ones(s, np.float32) for x, s in (("A", (8, 5)), ("B", (5, 8)))
    }
    values |= {f"m.q.lora_{x}.weight": np.ones(s, np.float32) for x, s in (("A", (8, 5)), ("B", (5, 8)))}
    save_file(values, tmp_path / "adapter_model.safetensors")
    config = '{"peft_type": "LORA", "r": 2, "target_parameters": ["experts.up"], "rank_pattern": {"experts.up": 4}}'
    tmp_path.joinpath("adapter_config.json").write_text(config)
    effects = find_effects(open_source(tmp_path))
    assert effects is not None
    assert all("experts" in name for name in effects.exact)
    assert [u.experts for u in effects.units.values()] == [1, 1]


def test_names_with_an_adapter_in_them(tmp_path: Path) -> None:
    """As in the state dict of a model, where PEFT has not left them out; two adapters are two products."""
    draw = np.random.default_rng(0)
    values = {}
    for adapter in ("default", "other"):
        values[f"m.q.lora_A.{adapter}.weight"] = draw.standard_normal((4, 16)).astype(np.float32)
        values[f"m.q.lora_B.{adapter}.weight"] = draw.standard_normal((16, 4)).astype(np.float32)
        values[f"m.q.lora_B.{adapter}.bias"] = draw.standard_normal(16).astype(np.float32)
    save_file(values, tmp_path / "a.safetensors")
    effects = find_effects(open_source(tmp_path / "a.safetensors"))
    assert effects is not None
    assert not effects.exact
    assert {u.module for u in effects.units.values()} == {
        f"m.q.{adapter}{end}" for adapter in ("default", "other") for end in ("", ".bias")
    }
    assert encode_file(tmp_path / "a.safetensors", tmp_path / "a.fcu", codec="int(bits=8)")["error"] < 0.02


@pytest.mark.parametrize("name", ["lora_A.weight", "lora_B.weight", "score.weight"])
def test_tensors_that_were_not_gathered(tmp_path: Path, name: str) -> None:
    values = {f"base_model.model.q.{n}": np.ones((2, 2), np.float32) for n in ("lora_A.weight", "lora_B.weight")}
    values[f"base_model.model.q.{name}"] = np.zeros(0, np.float32)
    save_file(values, tmp_path / "adapter_model.safetensors")
    tmp_path.joinpath("adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        for base in (None, path):
            with pytest.raises(errors.ConfigError, match=rf"{name}: \[0\]: must not be empty: .* not gathered"):
                encode_file(path, tmp_path / "a.fcu", base=base)
    assert not (tmp_path / "a.fcu").exists()


def test_a_model_with_an_alpha_is_no_adapter(tmp_path: Path) -> None:
    save_file({"act.alpha": np.ones(4, np.float32), "w": np.ones((4, 4), np.float32)}, tmp_path / "m.safetensors")
    assert find_effects(open_source(tmp_path / "m.safetensors")) is None


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"lora_A.weight": (4, 8)}, "partner is missing"),
        ({"lora_A.weight": (4, 8), "lora_B.weight": (8, 2)}, "do not multiply"),
        ({"hada_w1_a": (8, 2), "hada_w1_b": (2, 8), "hada_w2_a": (8, 2)}, "partner is missing"),
        ({"lora_A.weight": (4, 8), "lora_down.weight": (4, 8)}, "partner is missing"),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (4, 2)}, "partner is missing"),
        ({"future_C": (4, 4)}, "whole copies"),
    ],
)
def test_what_does_not_fit_is_exact(tmp_path: Path, shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    draw = np.random.default_rng(0)
    values = {f"base_model.model.q.{n}": draw.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    save_file(values, tmp_path / "adapter_model.safetensors")
    tmp_path.joinpath("adapter_config.json").write_text('{"r": 4}')
    facts = encode_file(tmp_path, tmp_path / "a.fcu")
    assert reason in facts["exact"][0]["why"]
    assert facts["coded_parameters"] == 0
    decode_file(tmp_path / "a.fcu", tmp_path / "b")
    found = load_file(tmp_path / "b" / "adapter_model.safetensors")
    assert all(np.array_equal(v, found[n]) for n, v in values.items())


def test_a_pattern_that_is_none(tmp_path: Path) -> None:
    save_trained(tmp_path / "a", "lora")
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(config.read_text().replace('"alpha_pattern": {}', '"alpha_pattern": {"(": 4}'))
    with pytest.raises(errors.ConfigError, match=r"alpha_pattern: \(: must be a regular expression"):
        encode_file(tmp_path / "a", tmp_path / "a.fcu")
