"""Adapters of mixtures of experts: merged weights of stock PEFT, against the mean of those of the sites."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from torch import nn

from fedcompress.errors import ConfigError
from fedcompress.files.merge import merge_adapters
from fedcompress.files.merge.experts import find_parameters, select_a, select_b, stack_factors

SHARES = np.array([1.0, 2.0]) / 3
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
}
OSS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def base(kind: str) -> nn.Module:
    import transformers as hf

    torch.manual_seed(0)
    if kind == "mixtral":
        return hf.MixtralForCausalLM(hf.MixtralConfig(**SMALL, num_local_experts=4))
    if kind == "qwen3":
        more = {"num_experts": 4, "moe_intermediate_size": 12, "head_dim": 4}
        return hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**SMALL, **more))
    if kind == "oss":
        more = {"num_local_experts": 4, "head_dim": 4, "layer_types": ["full_attention"]}
        return hf.GptOssForCausalLM(hf.GptOssConfig(**SMALL, **more))
    return Old() if kind == "old" else Named(kind.split("+"))


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Linear(16, 24, bias=False)
        self.w2 = nn.Linear(24, 16, bias=False)


class Old(nn.Module):
    """Experts as modules, as older transformers had them."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Expert() for _ in range(4))


class Inner(nn.Module):
    def __init__(self, names: list[str]) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.randn(3, 10, 6)))


class Named(nn.Module):
    """Experts whose parameters have the given names."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.layer = nn.Module()
        self.layer.experts = Inner(names)
        self.q = nn.Linear(6, 6)


def site(folder: Path, kind: str, seed: int, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base(kind), LoraConfig(**{"r": 3, "lora_alpha": 6, **options}))
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = 0.3 * torch.randn_like(parameter)
        model.save_pretrained(folder)
    return folder


def change(folder: Path, kind: str) -> dict[str, np.ndarray]:
    """What an adapter adds to the weights, as stock PEFT merges it, by parameter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", "Found missing adapter keys")
        plain = {n: p.detach().double().numpy() for n, p in base(kind).named_parameters()}
        model = PeftModel.from_pretrained(base(kind), folder)
        adapted = {n: p.detach().double().numpy() for n, p in model.merge_and_unload().named_parameters()}
    return {n: adapted[n] - plain[n] for n in plain if not np.array_equal(adapted[n], plain[n])}


def mean_of(folders: list[Path], kind: str, shares: np.ndarray) -> dict[str, np.ndarray]:
    out: dict[str, Any] = {}
    for share, folder in zip(shares, folders, strict=True):
        for name, value in change(folder, kind).items():
            out[name] = out.get(name, 0) + share * value
    return out


def error(found: dict[str, np.ndarray], target: dict[str, np.ndarray]) -> float:
    assert set(found) == set(target)
    off = sum(np.sum((found[n] - target[n]) ** 2) for n in target)
    return float(np.sqrt(off / sum(np.sum(v**2) for v in target.values())))


MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "experts and attention": ("mixtral", {"target_modules": ["w1", "w2", "w3", "q_proj"]}),
    "a router alone": ("mixtral", {"target_modules": ["q_proj", "v_proj", "gate"]}),
    "all of Mixtral": ("mixtral", {"target_modules": "all-linear"}),
    "all of Qwen3": ("qwen3", {"target_modules": "all-linear"}),
    "as GPT-OSS": ("oss", {"target_modules": ["q_proj"], "target_parameters": OSS}),
    "one of two": ("oss", {"target_modules": [], "target_parameters": OSS[1:]}),
}


@pytest.mark.parametrize("rule", ["exact", "flora"])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_experts_are_merged_one_by_one(tmp_path: Path, mixture: str, rule: str) -> None:
    kind, options = MIXTURES[mixture]
    other = {"use_rslora": True, "r": 2} if "OSS" in mixture else {"r": 2, "lora_alpha": 3}
    folders = [site(tmp_path / "a", kind, 1, **options), site(tmp_path / "b", kind, 2, **options, **other)]
    report = merge_adapters(folders, tmp_path / "out", rule=rule, weights=[1, 2])
    assert error(change(tmp_path / "out", kind), mean_of(folders, kind, SHARES)) < 2e-6
    assert report["merge_error"] < 1e-6
    merge_adapters(folders[:1], tmp_path / "one", rule=rule)
    assert error(change(tmp_path / "one", kind), change(folders[0], kind)) < 2e-6


@pytest.mark.parametrize("kind", ["mixtral", "qwen3"])
def test_forms_rules_and_ranks(tmp_path: Path, kind: str) -> None:
    """By expert: the best rank is that of its SVD, and rules of rounds are in the order of their error."""
    folders = [site(tmp_path / n, kind, seed, target_modules="all-linear") for seed, n in enumerate("ab")]
    target = mean_of(folders, kind, np.array([0.5, 0.5]))
    found = {}
    for rule in ("fedex", "fedit", "lora-ridge", "lora-svd", "mean", "ties(density=1)"):
        report = merge_adapters(folders, tmp_path / rule, rule=rule)
        found[rule] = error(change(tmp_path / rule, kind), target)
        assert report["merge_error"] == pytest.approx(found[rule], rel=1e-3, abs=1e-6), rule
    assert found["fedex"] < 2e-6
    assert found["lora-svd"] < found["lora-ridge"] < found["fedit"] == pytest.approx(found["mean"], rel=1e-4)
    merge_adapters(folders, tmp_path / "mean-p", rule="mean", space="product", energy=1.0)
    assert error(change(tmp_path / "mean-p", kind), target) < 1e-5
    merge_adapters(folders, tmp_path / "r2", rank=2)
    cut = change(tmp_path / "r2", kind)
    for name, values in target.items():
        stacked = values if values.ndim == 3 else values[None]
        for one, other in zip(stacked, cut[name].reshape(stacked.shape), strict=True):
            u, s, v = np.linalg.svd(one, full_matrices=False)
            assert np.allclose(other, u[:, :2] * s[:2] @ v[:2], atol=2e-6), name
    report = merge_adapters(folders, tmp_path / "energy", energy=0.8)
    assert 0.1 < error(change(tmp_path / "energy", kind), target) < 0.45
    assert {m["name"] for m in report["modules"] if "experts[" in m["name"]} == {
        f"base_model.model.model.layers.0.mlp.experts[{i}]" for i in range(4)
    }


def test_rules_by_entries_see_each_expert(tmp_path: Path) -> None:
    """A trim to half the entries, of each expert's B."""
    folders = [site(tmp_path / n, "mixtral", seed, target_modules=["w1", "w2", "w3"]) for seed, n in enumerate("ab")]
    merge_adapters(folders, tmp_path / "out", rule="magnitude-prune(density=0.5)")
    name = "base_model.model.model.layers.0.mlp.experts.lora_B.weight"
    raw = [2 * load_file(f / "adapter_model.safetensors")[name].reshape(16, 3, 4) for f in folders]
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")[name].reshape(16, 3, 4)
    for expert in range(4):
        expected = np.zeros((16, 3))
        for values in raw:
            own = values[:, :, expert]
            expected += np.where(np.abs(own) >= np.sort(np.abs(own).ravel())[24], own, 0) / 2
        assert np.allclose(found[:, :, expert] * scale_of(tmp_path / "out"), expected, atol=1e-6)


def scale_of(folder: Path) -> float:
    """Scaling of what has the rank 3."""
    return json.loads((folder / "adapter_config.json").read_text())["lora_alpha"] / 3


def test_a_site_without_experts_sends_a_zero_update_of_them(tmp_path: Path) -> None:
    folders = [
        site(tmp_path / "a", "mixtral", 1, target_modules=["q_proj"], lora_dropout=0.1),
        site(tmp_path / "b", "mixtral", 2, target_modules=["q_proj", "w1", "w2", "w3"]),
        site(tmp_path / "c", "mixtral", 3, target_modules=["v_proj", "gate"]),
    ]
    merge_adapters(folders, tmp_path / "out")
    assert error(change(tmp_path / "out", "mixtral"), mean_of(folders, "mixtral", np.ones(3) / 3)) < 2e-6


def test_experts_as_modules_are_merged_as_before(tmp_path: Path) -> None:
    folders = [site(tmp_path / n, "old", seed, target_modules=["w1", "w2"]) for seed, n in enumerate("ab")]
    report = merge_adapters(folders, tmp_path / "out")
    assert error(change(tmp_path / "out", "old"), mean_of(folders, "old", np.array([0.5, 0.5]))) < 2e-6
    assert len(report["modules"]) == 8


@pytest.mark.parametrize("names", ["gate_up_proj+down_proj", "a+b", "zulu+alpha+mike"])
def test_wrappers_of_parameters_with_any_name(tmp_path: Path, names: str) -> None:
    """Which wrapper is of which parameter is known for the names of transformers, and not needed at equal ranks."""
    more = {"target_modules": ["q"], "target_parameters": names.split("+")}
    folders = [site(tmp_path / n, names, seed, r=r, **more) for seed, (n, r) in enumerate((("a", 3), ("b", 2)))]
    merge_adapters(folders, tmp_path / "out", energy=0.9999999)
    assert error(change(tmp_path / "out", names), mean_of(folders, names, np.array([0.5, 0.5]))) < 1e-3
    pattern = {"rank_pattern": {names.split("+")[0]: 1}, "alpha_pattern": {names.split("+")[1]: 5}}
    folder = site(tmp_path / "c", names, 5, **more, **pattern)
    if names.startswith("gate"):
        merge_adapters([folder, folders[0]], tmp_path / "out2")
        target = mean_of([folder, folders[0]], names, np.array([0.5, 0.5]))
        assert error(change(tmp_path / "out2", names), target) < 2e-6
    else:
        with pytest.raises(ConfigError, match=r"c: .*rank and alpha of layer.experts.*does not say which one"):
            merge_adapters([folder], tmp_path / "no")


def test_other_parameters_of_one_module_are_refused(tmp_path: Path) -> None:
    options = {"target_modules": ["q_proj"]}
    folders = [site(tmp_path / n, "oss", 1, **options, target_parameters=[t]) for n, t in zip("ab", OSS, strict=True)]
    with pytest.raises(ConfigError, match=r"b: .*experts: .*must be of the same parameter as in .*a, .*gate_up_proj"):
        merge_adapters(folders, tmp_path / "no")


def test_numbers_of_experts_must_agree(tmp_path: Path) -> None:
    folders = [site(tmp_path / n, "oss", 1, target_modules=[], target_parameters=OSS[:1]) for n in "ab"]
    path = folders[1] / "adapter_model.safetensors"
    for experts, words in ((2, "must be as in .*a but for the rank"), (1, "must be as in .*a")):
        cut = {n: v[: 3 * experts] if "lora_A" in n else v[:, : 3 * experts] for n, v in load_file(path).items()}
        save_file({n: np.ascontiguousarray(v) for n, v in cut.items()}, path, {"format": "pt"})
        with pytest.raises(ConfigError, match=words):
            merge_adapters(folders, tmp_path / "no")
    cut = {n: np.ascontiguousarray(v[:2] if "lora_A" in n else v[:, :2]) for n, v in load_file(path).items()}
    save_file(cut, path, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"must have the rank of adapter_config\.json: 3, times a number of experts"):
        merge_adapters(folders, tmp_path / "no")


def test_the_order_in_the_tensors() -> None:
    a, b = np.arange(12, dtype=np.float32).reshape(6, 2), np.arange(30, dtype=np.float32).reshape(5, 6)
    assert select_a(a, 1, 3).tolist() == a[2:4].tolist()
    assert select_b(b, 1, 3).tolist() == b[:, [1, 4]].tolist()
    pairs = [(select_a(a, i, 3), select_b(b, i, 3)) for i in range(3)]
    whole_a, whole_b = stack_factors(pairs, 2)
    assert (whole_a == a).all()
    assert (whole_b == b).all()
    padded_a, padded_b = stack_factors(pairs, 4)
    assert select_a(padded_a, 2, 3)[2:].tolist() == [[0, 0], [0, 0]]
    assert (select_b(padded_b, 2, 3)[:, :2] == pairs[2][1]).all()


def test_names_of_parameters() -> None:
    config = {"target_modules": ["q"], "target_parameters": ["gate.weight", "gate_up_proj", "down_proj"]}
    names = ["l.experts", "l.experts.base_layer", "l.gate", "l.q"]
    assert find_parameters(config, names) == {
        "l.experts.base_layer": ("l.experts.gate_up_proj",),
        "l.experts": ("l.experts.down_proj",),
        "l.gate": ("l.gate.weight",),
    }
    assert find_parameters({"target_modules": ["q", "gate"]}, names) == {}
