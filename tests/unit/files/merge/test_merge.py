"""Merged folders load in stock PEFT and change the weights by the weighted mean of the sites' changes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import (
    C3AConfig,
    FourierFTConfig,
    IA3Config,
    LoraConfig,
    MissConfig,
    PeftModel,
    ShiraConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.numpy import load_file, save_file
from torch import nn

from fedcompress.errors import ConfigError, NonFiniteError, StateError
from fedcompress.files import encode_file
from fedcompress.files.merge import TYPES, merge_adapters
from fedcompress.files.merge.plot import draw

WEIGHTS = [1.0, 2.0, 3.0]
SHARES = np.array(WEIGHTS) / 6


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(11, 8)
        self.conv = nn.Conv2d(3, 8, 3)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.emb(tokens)
        return self.head(self.down(self.up(x)))


def site(folder: Path, config: Any, seed: int, scale: float = 0.5) -> Path:
    """A random adapter, as PEFT saves it."""
    model = get_peft_model(Net(), config)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + scale * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["up", "down"], **options})


def deltas(folder: Path) -> dict[str, np.ndarray]:
    """By module, as stock PEFT computes them."""
    model = PeftModel.from_pretrained(Net(), folder)
    saved, names = load_file(folder / "adapter_model.safetensors"), model.state_dict()
    for key, value in saved.items():  # nothing was left out silently
        loaded = [
            n for n in names if n.replace(".default", "").replace(".modules_to_save", "") in (key, f"{key}.weight")
        ]
        assert any(np.array_equal(names[n].float().numpy(), value.astype(np.float32)) for n in loaded), key
    return {
        name: module.get_delta_weight("default").detach().double().numpy()
        for name, module in model.named_modules()
        if "default" in getattr(module, "lora_A", {}) or "default" in getattr(module, "lora_embedding_A", {})
    }


def mean_of(folders: list[Path], shares: np.ndarray = SHARES) -> dict[str, np.ndarray]:
    out: dict[str, Any] = {}
    for weight, folder in zip(shares, folders, strict=True):
        for name, value in deltas(folder).items():
            out[name] = out.get(name, 0) + weight * value
    return out


def error(found: Mapping[str, np.ndarray], target: Mapping[str, np.ndarray]) -> float:
    assert set(found) >= set(target)
    off = sum(np.sum((found[n] - target[n]) ** 2) for n in target)
    return float(np.sqrt(off / sum(np.sum(v**2) for v in target.values())))


def config_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def change_config(folder: Path, **changes: Any) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({**config_in(folder), **changes}))


def change_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


MIXED = [
    lora(target_modules=["up", "down", "emb", "conv"]),
    lora(r=9, lora_alpha=3, use_rslora=True, target_modules=["up", "down", "emb", "conv"]),
    lora(r=2, rank_pattern={"up": 5}, alpha_pattern={"down": 7}, target_modules=["up", "down", "emb", "conv"]),
]
EQUAL = [lora(), lora(lora_alpha=3, use_rslora=True), lora(alpha_pattern={"down": 7})]


def sites(tmp_path: Path, configs: list[Any]) -> list[Path]:
    return [site(tmp_path / f"s{i}", copy.deepcopy(c), i + 1) for i, c in enumerate(configs)]


@pytest.mark.parametrize("rule", ["exact", "flora"])
def test_mixed_ranks_scalings_and_kinds_of_layers(tmp_path: Path, rule: str) -> None:
    folders = sites(tmp_path, MIXED)
    report = merge_adapters(folders, tmp_path / "out", rule=rule, weights=WEIGHTS)
    assert error(deltas(tmp_path / "out"), mean_of(folders)) < 1e-6
    assert report["merge_error"] < 1e-6
    config = config_in(tmp_path / "out")
    assert config["use_rslora"] is False
    assert config["alpha_pattern"] == {}
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert [s["ranks"] for s in report["sites"]] == [[4], [9], [2, 5]]


@pytest.mark.parametrize("rule", ["exact", "flora", "fedex"])
def test_exact_forms_of_equal_ranks(tmp_path: Path, rule: str) -> None:
    folders = sites(tmp_path, EQUAL)
    merge_adapters(folders, tmp_path / "out", rule=rule, weights=WEIGHTS)
    assert error(deltas(tmp_path / "out"), mean_of(folders)) < 1e-6
    config = config_in(tmp_path / "out")
    rank = {"exact": 8, "flora": 12, "fedex": 12}[rule]  # down is 8 x 12, so its rank is at most 8
    assert (config["r"], config["lora_alpha"]) == (rank, rank)
    assert config["rank_pattern"] == {}


def test_rank_and_energy_are_those_of_the_dense_svd(tmp_path: Path) -> None:
    folders = sites(tmp_path, MIXED)
    target = mean_of(folders)
    report = merge_adapters(folders, tmp_path / "out", rank=3, weights=WEIGHTS)
    assert config_in(tmp_path / "out")["r"] == 3
    found = deltas(tmp_path / "out")
    errors = {m["name"].removeprefix("base_model.model."): m for m in report["modules"]}
    for name, value in target.items():
        flat = value.reshape(value.shape[0], -1)
        u, s, v = np.linalg.svd(flat, full_matrices=False)
        assert np.allclose(found[name].reshape(flat.shape), u[:, :3] * s[:3] @ v[:3], atol=1e-5), name
        lost = np.linalg.norm(s[3:]) / np.linalg.norm(s)
        row = errors[name.removeprefix("base_model.model.")]
        assert row["truncation_error"] == pytest.approx(lost, rel=1e-6)
        assert row["merge_error"] == pytest.approx(lost, rel=1e-5)
    report = merge_adapters(folders, tmp_path / "energy", energy=0.9, weights=WEIGHTS)
    found = deltas(tmp_path / "energy")
    for module in report["modules"]:
        value = target[module["name"]]
        s = np.linalg.svd(value.reshape(value.shape[0], -1), compute_uv=False)
        assert module["rank"] == int(np.searchsorted(np.cumsum(s**2) / np.sum(s**2), 0.9)) + 1
    assert len({m["rank"] for m in report["modules"]}) > 1
    assert config_in(tmp_path / "energy")["rank_pattern"]
    assert 0.05 < error(found, target) < 0.33


def test_lora_rules_in_the_order_of_their_error(tmp_path: Path) -> None:
    folders, found = sites(tmp_path, EQUAL), {}
    target = mean_of(folders)
    for rule in ("fedit", "lora-ridge", "lora-fair", "lora-als", "lora-procrustes", "lora-svd", "mean"):
        report = merge_adapters(folders, tmp_path / rule, rule=rule, weights=WEIGHTS)
        found[rule] = error(deltas(tmp_path / rule), target)
        assert report["merge_error"] == pytest.approx(found[rule], rel=1e-4), rule
        assert config_in(tmp_path / rule)["r"] == config_in(tmp_path / rule)["lora_alpha"] == 4
    merge_adapters(folders, tmp_path / "r4", rank=4, weights=WEIGHTS)
    best = error(deltas(tmp_path / "r4"), target)
    assert found["lora-svd"] == pytest.approx(best, rel=1e-4)
    assert found["lora-procrustes"] == pytest.approx(best, rel=1e-4)
    assert best * (1 + 1e-6) < found["lora-als"] < found["lora-ridge"] < found["fedit"]
    assert found["fedit"] == pytest.approx(found["mean"], rel=1e-4)


def test_fedex_has_the_means_and_the_best_residual(tmp_path: Path) -> None:
    folders = sites(tmp_path, [lora(), lora(), lora()])
    target = mean_of(folders)
    merge_adapters(folders, tmp_path / "fedit", rule="fedit", weights=WEIGHTS)
    merge_adapters(folders, tmp_path / "out", rule="fedex", rank=6, weights=WEIGHTS)
    found, means = deltas(tmp_path / "out"), deltas(tmp_path / "fedit")
    for name, value in target.items():
        u, s, v = np.linalg.svd(value - means[name], full_matrices=False)
        assert np.allclose(found[name] - means[name], u[:, :2] * s[:2] @ v[:2], atol=1e-5)
    with pytest.raises(ConfigError, match="--rank: 3: must be at least 4"):
        merge_adapters(folders, tmp_path / "no", rule="fedex", rank=3)


def test_ffa_needs_an_equal_a(tmp_path: Path) -> None:
    folders = sites(tmp_path, [lora(), lora(lora_alpha=3)])
    with pytest.raises(ConfigError, match=r"--rule: ffa: needs the same A"):
        merge_adapters(folders, tmp_path / "out", rule="ffa")
    frozen = load_file(folders[0] / "adapter_model.safetensors")
    change_tensors(folders[1], lambda t: t.update({n: v for n, v in frozen.items() if "lora_A" in n}))
    for rule in ("ffa", "exact"):
        merge_adapters(folders, tmp_path / rule, rule=rule)
        assert error(deltas(tmp_path / rule), mean_of(folders, np.array([0.5, 0.5]))) < 1e-6
        assert config_in(tmp_path / rule)["r"] == 4


@pytest.mark.parametrize("rule", ["exact", "flora", "fedex", "fedit", "lora-ridge", "mean", "ties(density=1)"])
def test_one_site_is_returned(tmp_path: Path, rule: str) -> None:
    folders = sites(tmp_path, [lora(use_rslora=True)])
    merge_adapters(folders, tmp_path / "out", rule=rule)
    assert error(deltas(tmp_path / "out"), deltas(folders[0])) < 1e-6
    assert config_in(tmp_path / "out")["r"] == 4


def test_rules_on_entries_of_products(tmp_path: Path) -> None:
    """The mean of products is exact at full energy, also of mixed ranks; ties is the rule on dense matrices."""
    folders = sites(tmp_path, MIXED)
    merge_adapters(folders, tmp_path / "mean", rule="mean", space="product", energy=1.0, weights=WEIGHTS)
    assert error(deltas(tmp_path / "mean"), mean_of(folders)) < 1e-5
    report = merge_adapters(folders, tmp_path / "ties", rule="ties(density=1)", space="product", energy=1.0)
    dense = [deltas(f) for f in folders]
    for name, found in deltas(tmp_path / "ties").items():
        values = np.stack([d[name] for d in dense])
        agree = np.sign(values) == np.sign(values.sum(axis=0))
        expected = (values * agree).sum(axis=0) / agree.sum(axis=0)
        assert np.allclose(found, expected, atol=1e-4), name
    assert report["merge_error"] > 0.1
    assert report["space"] == "product"


def test_rules_on_entries_of_factors(tmp_path: Path) -> None:
    folders = sites(tmp_path, [lora(), lora()])
    merge_adapters(folders, tmp_path / "out", rule="ties(density=1)")
    raw = [load_file(f / "adapter_model.safetensors") for f in folders]
    for name, found in load_file(tmp_path / "out" / "adapter_model.safetensors").items():
        scale = 2.0 if "lora_B" in name else 1.0  # alpha / r is folded into B
        values = scale * np.stack([t[name] for t in raw]).astype(np.float64)
        agree = np.sign(values) == np.sign(values.sum(axis=0))
        assert np.allclose(found, (values * agree).sum(axis=0) / agree.sum(axis=0), atol=1e-5)
    with pytest.raises(ConfigError, match=r"--space: factors: the adapters have ranks \[2, 4, 9\].*--space product"):
        merge_adapters(sites(tmp_path / "m", MIXED), tmp_path / "no", rule="ties")


@pytest.mark.parametrize("rule", ["exact", "fedit", "mean", "lora-ridge"])
def test_a_missing_module_is_a_zero_update(tmp_path: Path, rule: str) -> None:
    folders = sites(tmp_path, [lora(), lora(target_modules=["up"])])
    target = mean_of(folders, np.array([0.5, 0.5]))
    report = merge_adapters(folders, tmp_path / "out", rule=rule)
    found = deltas(tmp_path / "out")
    assert set(found) == set(target)
    down = "base_model.model.down"
    assert error({down: found[down]}, {down: target[down]}) < (1e-6 if rule != "lora-ridge" else 1e-2)
    assert config_in(tmp_path / "out")["target_modules"] == ["down", "up"]
    assert "zero update" in report["notes"][0]


@pytest.mark.filterwarnings("ignore:Adapter 'default'.*invalid shape")  # PEFT takes a bias for a broken factor
def test_heads_biases_and_dtypes(tmp_path: Path) -> None:
    configs = [lora(modules_to_save=["head"], bias="lora_only", lora_bias=True, lora_alpha=a) for a in (8, 2)]
    folders = sites(tmp_path, configs)
    change_tensors(folders[0], lambda t: t.update({n: v.astype(np.float16) for n, v in t.items() if "head" in n}))
    merge_adapters(folders, tmp_path / "out", weights=[3, 1])
    raw = [load_file(f / "adapter_model.safetensors") for f in folders]
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert set(found) == set(raw[0])
    for name, value in found.items():
        scales = (2.0, 0.5) if name.endswith("lora_B.bias") else (1.0, 1.0)
        if "lora_A" not in name and not name.endswith("lora_B.weight"):
            mean = sum(w * s * r[name].astype(np.float64) for w, s, r in zip((0.75, 0.25), scales, raw, strict=True))
            assert np.allclose(value, mean, atol=1e-6), name
        assert value.dtype == np.float32
    assert error(deltas(tmp_path / "out"), mean_of(folders, np.array([0.75, 0.25]))) < 1e-6
    merge_adapters(folders, tmp_path / "half", dtype="float16")
    assert {v.dtype for v in load_file(tmp_path / "half" / "adapter_model.safetensors").values()} == {np.dtype("<f2")}
    change_tensors(folders[1], lambda t: t.pop("base_model.model.head.weight"))
    with pytest.raises(ConfigError, match=r"s1: base_model.model.head.weight: missing: must be in all"):
        merge_adapters(folders, tmp_path / "no")


def test_dora_loads_and_says_that_it_is_approximate(tmp_path: Path) -> None:
    folders = sites(tmp_path, [lora(use_dora=True), lora(use_dora=True, r=2)])
    report = merge_adapters(folders, tmp_path / "out")
    assert any("DoRA" in note and "no figures" in note for note in report["notes"])
    assert report["merge_error"] is None
    assert not {"norm", "mean_norm", "site_norms", "cosines", "contribution"} & set(report)
    assert {m["merge_error"] for m in report["modules"]} == {None}
    draw(report, tmp_path / "report.png")
    name = "base_model.model.up.lora_magnitude_vector"
    raw = [load_file(f / "adapter_model.safetensors")[name] for f in folders]
    assert np.allclose(load_file(tmp_path / "out" / "adapter_model.safetensors")[name], sum(raw) / 2, atol=1e-6)
    assert error(deltas(tmp_path / "out"), mean_of(folders, np.array([0.5, 0.5]))) < 1e-6
    merge_adapters(folders[:1], tmp_path / "one")
    tokens = torch.arange(11)
    one, two = (PeftModel.from_pretrained(Net(), f).eval()(tokens) for f in (folders[0], tmp_path / "one"))
    assert torch.allclose(one, two, atol=1e-5)
    with pytest.raises(ConfigError, match="use_dora"):
        merge_adapters([folders[0], site(tmp_path / "plain", lora(), 3)], tmp_path / "no")


def test_fcu_files(tmp_path: Path) -> None:
    folders = sites(tmp_path, [lora(), lora(r=2)])
    encode_file(folders[1], tmp_path / "s1.fcu", codec="none")
    merge_adapters([folders[0], tmp_path / "s1.fcu"], tmp_path / "out")
    assert error(deltas(tmp_path / "out"), mean_of(folders, np.array([0.5, 0.5]))) < 1e-6
    other = site(tmp_path / "base", lora(r=2), 9)
    encode_file(folders[1], tmp_path / "d.fcu", codec="none", base=other)
    merge_adapters([folders[0], tmp_path / "d.fcu"], tmp_path / "out2", base=other)
    assert error(deltas(tmp_path / "out2"), deltas(tmp_path / "out")) < 1e-6
    with pytest.raises(ConfigError, match="--base"):
        merge_adapters([folders[0], tmp_path / "d.fcu"], tmp_path / "no")
    with pytest.raises(ConfigError, match="--base"):
        merge_adapters(folders, tmp_path / "no", base=other)


ENTRIES = {
    "ia3": IA3Config(target_modules=["up", "down"], feedforward_modules=["down"]),
    "miss": MissConfig(r=4, target_modules=["up", "down"]),
    "c3a": C3AConfig(block_size=4, target_modules=["up", "down"]),
    "fourier": FourierFTConfig(n_frequency=9, target_modules=["up", "down"]),
    "shira": ShiraConfig(r=2, random_seed=5, target_modules=["up", "down"]),
}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("kind", ENTRIES)
def test_linear_types_are_averaged_exactly(tmp_path: Path, kind: str) -> None:
    """The merged base weights of stock PEFT, against the mean of those of the sites."""
    folders = sites(tmp_path, [ENTRIES[kind]] * 3)
    report = merge_adapters(folders, tmp_path / "out", weights=WEIGHTS)
    weights = []
    for folder in (*folders, tmp_path / "out"):
        model = PeftModel.from_pretrained(Net(), folder).merge_and_unload()
        weights.append(torch.cat([model.up.weight.ravel(), model.down.weight.ravel()]).detach().double().numpy())
    expected = sum(w * v for w, v in zip(SHARES, weights, strict=False))
    assert np.allclose(weights[-1], expected, atol=1e-5)
    assert not np.allclose(weights[-1], weights[0], atol=1e-2)
    assert sum(report["contribution"]) == pytest.approx(1)
    with pytest.raises(ConfigError, match="is for LoRA"):
        merge_adapters(folders, tmp_path / "no", rule="ties")


def test_sparse_values_at_other_places_are_refused(tmp_path: Path) -> None:
    folders = sites(tmp_path, [ENTRIES["shira"], ShiraConfig(r=2, random_seed=6, target_modules=["up", "down"])])
    with pytest.raises(ConfigError, match="random_seed: 6: must be as in"):
        merge_adapters(folders, tmp_path / "no")
    change_config(folders[1], random_seed=5)
    with pytest.raises(ConfigError, match=r"shira_indices: differs: must be equal at all sites"):
        merge_adapters(folders, tmp_path / "no")


def test_vera_is_averaged_while_d_is_frozen(tmp_path: Path) -> None:
    config = VeraConfig(r=4, target_modules=["up"])
    folders = sites(tmp_path, [config, config])
    with pytest.raises(ConfigError, match=r"vera_lambda_d.*differs: must be equal"):
        merge_adapters(folders, tmp_path / "no")
    frozen = load_file(folders[0] / "adapter_model.safetensors")
    change_tensors(folders[1], lambda t: t.update({n: v for n, v in frozen.items() if "lambda_b" not in n}))
    merge_adapters(folders, tmp_path / "out")
    weights = [
        PeftModel.from_pretrained(Net(), f).merge_and_unload().up.weight.detach().double()
        for f in (*folders, tmp_path / "out")
    ]
    assert torch.allclose(weights[2], (weights[0] + weights[1]) / 2, atol=1e-5)


def test_every_type_of_peft_is_in_the_table() -> None:
    from peft import PeftType

    assert {t.value for t in PeftType} == set(TYPES)
    assert list(TYPES) == sorted(TYPES)


def test_refused_types_say_why(tmp_path: Path) -> None:
    folder = site(tmp_path / "s", lora(), 0)
    for name, row in TYPES.items():
        if row.merge == "refused":
            change_config(folder, peft_type=name)
            with pytest.raises(ConfigError, match=f"peft_type: {name}: cannot be merged: it ") as caught:
                merge_adapters([folder], tmp_path / "no")
            assert row.why in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_model_name_or_path": "other"}, "base_model_name_or_path: other: must be as in"),
        ({"revision": "v2"}, "revision: v2: must be as in"),
        ({"peft_type": "IA3"}, "peft_type: IA3: must be as in"),
        ({"peft_type": "NEW"}, "peft_type: NEW: one of"),
        ({"bias": "all"}, "bias: all: must be as in"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa: changes the base model"),
        ({"init_lora_weights": "corda"}, "init_lora_weights: corda: changes the base model"),
        ({"init_lora_weights": "olora"}, "init_lora_weights: olora: changes the base model"),
        ({"r": 5}, r"must have the rank of adapter_config.json: 5"),
        ({"lora_alpha": None}, "lora_alpha: None: must be a finite number"),
        ({"rank_pattern": {"(": 4}}, "rank_pattern.*must be a regular expression"),
    ],
)
def test_configs_that_do_not_go_together(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    folders = sites(tmp_path, [lora(), lora()])
    change_config(folders[1], **changes)
    with pytest.raises(ConfigError, match=words) as caught:
        merge_adapters(folders, tmp_path / "out")
    assert "s1" in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert ("--other-bases" in str(caught.value)) == bool({"base_model_name_or_path", "revision"} & set(changes))
    if "base_model_name_or_path" in changes:
        merge_adapters(folders, tmp_path / "out", other_bases=True)


@pytest.mark.parametrize(
    ("one", "other", "goes"),
    [
        ("/models/llama/", "/models/llama", True),
        ("./models//llama", "models/llama/", True),
        ("unsloth/llama-3-8b", "unsloth/llama-3-8b-bnb-4bit", True),
        ("unsloth/llama-3-8b-unsloth-bnb-4bit/", "unsloth/llama-3-8b-bnb-4bit", True),
        (None, "", True),
        (None, "org/model", False),
        ("org/model", "unsloth/model-bnb-4bit", False),
        ("/models/llama", "/models/llama2", False),
        ("/models/llama", "models/llama", False),
    ],
)
def test_names_of_one_base(tmp_path: Path, one: str | None, other: str, goes: bool) -> None:
    folders = sites(tmp_path, [lora(), lora()])
    for folder, name in zip(folders, (one, other), strict=True):
        change_config(folder, base_model_name_or_path=name)
    if not goes:
        with pytest.raises(ConfigError, match=r"s1: base_model_name_or_path: .*; give --other-bases if"):
            merge_adapters(folders, tmp_path / "no")
    report = merge_adapters(folders, tmp_path / "out", other_bases=not goes)
    assert any("different names" in note for note in report["notes"]) == bool(one or other)
    assert config_in(tmp_path / "out")["base_model_name_or_path"] == one


def test_tensors_without_entries_are_refused_with_the_reason(tmp_path: Path) -> None:
    """ZeRO-3 leaves them so: in one of two adapters, in all of them, in a type that is averaged."""
    folders = sites(tmp_path, [lora(), lora(), ENTRIES["ia3"]])
    for count, folder in enumerate((folders[1], folders[0], folders[2])):
        change_tensors(folder, lambda t: t.update(dict.fromkeys(t, np.zeros(0, np.float32))))
        with pytest.raises(ConfigError, match=r"s\d: base.*: \[0\]: must not be empty: . of . tensors.*gathered"):
            merge_adapters(folders[2:] if count == 2 else folders[:2], tmp_path / "no")


def test_modules_are_compared_as_sets(tmp_path: Path) -> None:
    """Other modules of equal number; and a module that only one site has, beside shared ones."""
    folders = sites(tmp_path, [lora(target_modules=t) for t in (["up"], ["down"], ["up", "down", "conv"])])
    report = merge_adapters(folders[:2], tmp_path / "out")
    assert "s0 lacks 1 of 2, " in report["notes"][0]
    assert report["notes"][0].endswith("s1 lacks 1 of 2")
    assert error(deltas(tmp_path / "out"), mean_of(folders[:2], np.array([0.5, 0.5]))) < 1e-6
    report = merge_adapters(folders, tmp_path / "out")
    assert "s0 lacks 2 of 3" in report["notes"][0]
    assert "s2" not in report["notes"][0]
    assert merge_adapters(folders[2:] * 2, tmp_path / "out")["notes"] == []


@pytest.mark.parametrize("targets", [["up", "down"], r"(up|down)", ["model.up", "down", "up"]])
def test_a_module_that_the_config_names_must_be_in_the_file(tmp_path: Path, targets: Any) -> None:
    folders = sites(tmp_path, [lora(), lora(), lora(target_modules=targets)])
    change_tensors(folders[2], lambda t: [t.pop(n) for n in list(t) if ".up." in n])
    with pytest.raises(ConfigError, match=r"s2: base_model.model.up: missing: .*names that are no numbers"):
        merge_adapters(folders, tmp_path / "no")
    for options in ({"exclude_modules": ["up"]}, {"modules_to_save": ["up"]}, {"target_modules": ["down"]}):
        before = config_in(folders[2])
        change_config(folders[2], **options)
        report = merge_adapters(folders, tmp_path / "out")
        assert "s2 lacks 1 of 2" in report["notes"][0]
        change_config(folders[2], **before)


@pytest.mark.filterwarnings("ignore")
def test_adapters_with_numbers_for_names(tmp_path: Path) -> None:
    """PEFT writes each without the layers whose number is the name of another one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    small = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(**small, num_hidden_layers=4))
    config = LoraConfig(r=2, target_modules=["q_proj"])
    model = get_peft_model(base, config, adapter_name="0")
    for name in "12":
        model.add_adapter(name, config)
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"/0: .*layers\.1\.self_attn\.q_proj: missing: "):
        merge_adapters([tmp_path / n for n in "012"], tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("base_model.model.up.lora_A.weight"), "up: no lora_A: must come with"),
        (lambda t: t.update({"base_model.model.up.lora_E": np.zeros(3, np.float32)}), "lora_E: is no tensor"),
        (lambda t: t.update({"extra": np.zeros(3, np.float32)}), "extra: missing: must be in all adapters or in none"),
        (
            lambda t: t.update({"base_model.model.up.lora_B.weight": np.zeros((13, 4), np.float32)}),
            "up: .*must be as in .* but for the rank",
        ),
        (
            lambda t: t.update({"base_model.model.up.lora_B.weight": np.zeros((12, 3), np.float32)}),
            "up: .*must multiply",
        ),
    ],
)
def test_tensors_that_do_not_go_together(tmp_path: Path, change: Any, words: str) -> None:
    folders = sites(tmp_path, [lora(), lora()])
    change_tensors(folders[1], change)
    with pytest.raises(ConfigError, match=words):
        merge_adapters(folders, tmp_path / "out")


@pytest.mark.parametrize("rule", ["exact", "fedit", "ties"])
def test_nan_is_named(tmp_path: Path, rule: str) -> None:
    folders = sites(tmp_path, [lora(), lora()])
    change_tensors(folders[1], lambda t: t["base_model.model.up.lora_A.weight"].fill(np.nan))
    with pytest.raises(NonFiniteError, match=r"s1: base_model.model.up.lora_A.weight: contains NaN"):
        merge_adapters(folders, tmp_path / "out", rule=rule)
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_options(tmp_path: Path) -> None:
    folders = sites(tmp_path, [lora(), lora()])
    for options, words in (
        ({"rule": "zip"}, r"--rule: zip: must be one of \['exact', 'fedex', 'flora'"),
        ({"rule": "ties(election=x)"}, "rule.ties.election: x: one of"),
        ({"rule": "ties(x=1)"}, "--rule.ties: x=1: must be key=value"),
        ({"rule": "rolora"}, "--rule: rolora: is for rounds"),
        ({"rule": "flora", "rank": 4}, "--rank: 4: is for exact"),
        ({"rule": "ties", "energy": 0.9}, "--energy: 0.9: is for exact"),
        ({"rank": 0}, "--rank: 0: must be at least 1"),
        ({"energy": 1.5}, "--energy: 1.5: must be above 0"),
        ({"rank": 3, "energy": 0.5}, "--energy: 0.5: must not be given together"),
        ({"space": "product"}, "--space: product: must be factors"),
        ({"space": "x"}, "--space: x: one of"),
        ({"rule": "ties", "space": "product"}, "--rank: missing: must be given"),
        ({"weights": [0, 0]}, "weights"),
        ({"weights": [1]}, "weights"),
        ({"weights": [1, -1]}, r"--weights: \[1.0, -1.0\]: must have a sum above 0.*give --sum"),
        ({"weights": [1, -3]}, "must have a sum above 0"),
        ({"weights": [0, 0], "as_sum": True}, "must not all be 0"),
        ({"weights": [1, -0.5], "rule": "ties"}, r"--weights: \[2.0, -1.0\]: a negative weight is for exact and flora"),
        ({"weights": [1, -0.5], "rule": "mean"}, "a negative weight is for exact and flora.*mean weighs factors"),
        ({"weights": [1, -0.5], "rule": "fedex"}, "a negative weight is for exact and flora.*fedex"),
        ({"as_sum": True, "rule": "lora-ridge"}, "--sum: given: is for exact and flora"),
        ({"weights": [1, float("nan")]}, "weights"),
        ({"dtype": "int8"}, "--dtype: int8: one of"),
    ):
        with pytest.raises(ConfigError, match=words):
            merge_adapters(folders, tmp_path / "out", **options)
    with pytest.raises(ConfigError, match=r"-o: .*none of those"):
        merge_adapters(folders, folders[0])
    with pytest.raises(ConfigError, match="PATH: none"):
        merge_adapters([], tmp_path / "out")
    with pytest.raises(ConfigError, match=r"must be a PEFT folder or an \.fcu file"):
        merge_adapters([tmp_path / "absent"], tmp_path / "out")
    (folders[1] / "adapter_config.json").write_text("{")
    with pytest.raises(StateError, match="does not parse"):
        merge_adapters(folders, tmp_path / "out")


@pytest.mark.parametrize("options", [{}, {"rule": "flora"}, {"rule": "mean", "space": "product", "energy": 1.0}])
@pytest.mark.parametrize(("weights", "as_sum"), [([1, -0.5, 0.25], False), ([1, -0.5, 0.25], True), ([1, -1, 0], True)])
def test_negative_weights(tmp_path: Path, options: dict[str, Any], weights: list[float], as_sum: bool) -> None:
    """Over their sum, or as they are; opposite ones leave the difference."""
    folders = sites(tmp_path, MIXED)
    report = merge_adapters(folders, tmp_path / "out", weights=weights, as_sum=as_sum, **options)
    shares = np.array(weights) / (1 if as_sum else sum(weights))
    assert [s["weight"] for s in report["sites"]] == pytest.approx(shares.tolist())
    target = mean_of(folders, shares)
    assert error(deltas(tmp_path / "out"), target) < 1e-5
    assert report["merge_error"] < 1e-5
    assert report["norm"] == pytest.approx(np.sqrt(sum(np.sum(v**2) for v in target.values())), rel=1e-5)


def test_task_negation_is_that_of_peft(tmp_path: Path) -> None:
    """Adapters of one rank, by PEFT's own linear combination of products."""
    folders = sites(tmp_path, [lora(), lora(lora_alpha=3)])
    merge_adapters(folders, tmp_path / "out", weights=[1, -0.5], as_sum=True)
    model = PeftModel.from_pretrained(Net(), folders[0], adapter_name="a")
    model.load_adapter(folders[1], "b")
    model.add_weighted_adapter(["a", "b"], [1.0, -0.5], "c", combination_type="cat")
    theirs = {n: m.get_delta_weight("c") for n, m in model.named_modules() if "c" in getattr(m, "lora_A", {})}
    assert error(deltas(tmp_path / "out"), {n: v.detach().double().numpy() for n, v in theirs.items()}) < 1e-6


def test_a_sum_of_whole_values_has_no_sense(tmp_path: Path) -> None:
    folders = sites(tmp_path, [lora(modules_to_save=["head"])] * 2)
    with pytest.raises(ConfigError, match=r"--sum: given: must be left out.*head\..* is saved whole"):
        merge_adapters(folders, tmp_path / "no", weights=[1, -0.5], as_sum=True)
    raw = [load_file(f / "adapter_model.safetensors")["base_model.model.head.weight"] for f in folders]
    for weights, as_sum in (([1, -0.5], False), ([2, -1], True)):
        merge_adapters(folders, tmp_path / "out", weights=weights, as_sum=as_sum)
        found = load_file(tmp_path / "out" / "adapter_model.safetensors")["base_model.model.head.weight"]
        assert np.allclose(found, 2 * raw[0] - raw[1], atol=1e-5)
    averaged = sites(tmp_path / "ia3", [ENTRIES["ia3"]] * 2)
    merge_adapters(averaged, tmp_path / "out", weights=[1, -0.5])
    with pytest.raises(ConfigError, match="is saved whole"):
        merge_adapters(averaged, tmp_path / "no", weights=[1, -0.5], as_sum=True)


def test_zero_weight_and_zero_update(tmp_path: Path) -> None:
    folders = sites(tmp_path, [lora(), lora(r=2)])
    report = merge_adapters(folders, tmp_path / "out", weights=[1, 0])
    assert error(deltas(tmp_path / "out"), deltas(folders[0])) < 1e-6
    assert report["contribution"] == [1, 0]
    change_tensors(folders[0], lambda t: [v.fill(0) for n, v in t.items() if "lora_B" in n])
    report = merge_adapters(folders[:1], tmp_path / "zero")
    assert all((d == 0).all() for d in deltas(tmp_path / "zero").values())
    assert (report["rank"], report["cosines"], report["contribution"]) == ([1, 1], [[0.0]], [0.0])


def test_the_report_is_that_of_dense_matrices(tmp_path: Path) -> None:
    folders = sites(tmp_path, [*MIXED[:2], lora(target_modules=["up", "emb", "conv"])])
    report = merge_adapters(folders, tmp_path / "out", weights=WEIGHTS, rank=4)
    dense = [deltas(f) for f in folders]
    names = sorted(dense[0])
    flat = np.stack([np.concatenate([d.get(n, 0 * dense[0][n]).ravel() for n in names]) for d in dense])
    norms = np.linalg.norm(flat, axis=1)
    assert np.allclose(report["cosines"], flat @ flat.T / np.outer(norms, norms), atol=1e-6)
    assert np.allclose(report["site_norms"], norms)
    mean = SHARES @ flat
    assert np.allclose(report["contribution"], SHARES * (flat @ mean) / (mean @ mean))
    assert sum(report["contribution"]) == pytest.approx(1)
    row = next(m for m in report["modules"] if m["name"].endswith("up"))
    values = np.stack([d["base_model.model.up"] for d in dense])  # 12 rows: all are sampled
    assert row["sign_conflict"] == pytest.approx(np.mean(np.sign(values) != np.sign(np.tensordot(SHARES, values, 1))))
    down = next(m for m in report["modules"] if m["name"].endswith("down"))
    assert down["sites"] == 2
    assert down["site_norms"][2] == 0


def test_many_sites(tmp_path: Path) -> None:
    """More stacked rank than a side, and a module whose name is the end of another one."""
    folders = sites(tmp_path, [lora(r=5)] * 6)
    merge_adapters(folders, tmp_path / "out")
    assert error(deltas(tmp_path / "out"), mean_of(folders, np.full(6, 1 / 6))) < 1e-6
    assert config_in(tmp_path / "out")["r"] == 8


@pytest.mark.filterwarnings("ignore:Adapter 'default'.*invalid shape")  # PEFT takes a bias for a broken factor
def test_one_alpha_says_the_scaling(tmp_path: Path) -> None:
    """Also to readers that know neither alpha_pattern nor use_rslora: lora_alpha over the rank of the tensor."""
    folders = sites(tmp_path, MIXED)
    for options in ({}, {"rule": "flora"}, {"energy": 0.9}, {"rank": 3}):
        merge_adapters(folders, tmp_path / "out", weights=WEIGHTS, **options)
        config = config_in(tmp_path / "out")
        assert (config["use_rslora"], config["alpha_pattern"]) == (False, {})
        assert bool(config["rank_pattern"]) == ("rule" in options or "energy" in options)
        model = PeftModel.from_pretrained(Net(), tmp_path / "out")
        for name, module in model.named_modules():
            if "default" in getattr(module, "r", {}):
                expected = config["lora_alpha"] / module.r["default"]
                assert module.scaling["default"] == pytest.approx(expected, rel=1e-6), name
    biased = sites(tmp_path / "b", [lora(lora_bias=True, r=r, rank_pattern={"up": 2}) for r in (3, 4)])
    merge_adapters(biased, tmp_path / "b" / "out", rule="flora")
    assert config_in(tmp_path / "b" / "out")["alpha_pattern"] == {"up": 4}  # the bias of B is scaled too


def test_patterns_do_not_match_modules_with_a_longer_name(tmp_path: Path) -> None:
    from fedcompress.adapters.scaling import match_pattern
    from fedcompress.files.merge.sources import open_sites
    from fedcompress.files.merge.writer import merge_configs

    held = open_sites([site(tmp_path / "s", lora(), 0)], None, tmp_path)
    ranks = {"base_model.model.up": 3, "base_model.model.x.up": 2, "base_model.model.down": 2}
    config = merge_configs(held, ranks)
    for name, rank in ranks.items():
        module = name.removeprefix("base_model.model.")
        assert match_pattern(tmp_path, config, "rank_pattern", module, config["r"]) == rank
