"""One alpha says the scaling of every module, also to readers that know no other; PEFT merges the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from fedcompress.adapters import load_adapter, save_adapter
from fedcompress.adapters.scaling import write_one_alpha
from fedcompress.config.objective import CausalLM
from tests.unit.adapters import sites


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(11, 8)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)
        self.side = nn.Conv2d(3, 8, 3)


def weights(folder: Path) -> dict[str, np.ndarray]:
    model = PeftModel.from_pretrained(Net(), folder).merge_and_unload()
    return {n: p.detach().double().numpy() for n, p in model.named_parameters()}


def scalings(folder: Path) -> list[tuple[float, float]]:
    """By PEFT, and by ``lora_alpha`` over the rank of the tensor, of all modules."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_adapter(folder).tensors
    found = []
    for name, module in PeftModel.from_pretrained(Net(), folder).named_modules():
        if "default" in getattr(module, "r", {}):
            [rank] = {
                v.shape[0] for n, v in tensors.items() if n.startswith(f"{name}.lora_") and "A" in n.split("lora_")[1]
            }
            found.append((module.scaling["default"], config["lora_alpha"] / rank))
    return found


CASES: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "alphas": {"alpha_pattern": {"up": 3, "side": 20}},
    "ranks and alphas": {"rank_pattern": {"up": 2, "emb": 7}, "alpha_pattern": {"up": 3}},
    "all of it": {"use_rslora": True, "rank_pattern": {"up": 2, "emb": 7}, "alpha_pattern": {"down|side": 5}},
    "ranks": {"rank_pattern": {"up": 2}},
}


def saved(folder: Path, **options: Any) -> Path:
    names = ["emb", "up", "down", "side"]
    model = get_peft_model(Net(), LoraConfig(r=4, lora_alpha=16, target_modules=names, **options))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_readers_of_one_alpha_agree_with_peft(tmp_path: Path, case: str, dtype: str) -> None:
    adapter = load_adapter(saved(tmp_path / "a", **CASES[case]))
    layout = type(adapter.layout)(
        tuple(type(t)(name=t.name, shape=t.shape, dtype=dtype, group=t.group) for t in adapter.layout.tensors)
    )
    save_adapter(tmp_path / "a", adapter.config, layout, adapter.tensors)
    before = load_adapter(tmp_path / "a")
    config, layout, tensors = write_one_alpha(before.config, before.layout, before.tensors)
    save_adapter(tmp_path / "b", config, layout, tensors)
    assert (config.get("use_rslora"), config.get("alpha_pattern")) == (False, {})
    for theirs, plain in scalings(tmp_path / "b"):
        assert theirs == pytest.approx(plain, rel=1e-6)
    one, two = weights(tmp_path / "a"), weights(tmp_path / "b")
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-6, atol=1e-6 * np.abs(value).max())
    if case in ("rslora", "ranks"):  # no tensor changes
        assert layout == before.layout
        assert all((tensors[n] == v).all() for n, v in before.tensors.items())
    assert (config["lora_alpha"] == 32) == (case == "rslora")


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_what_is_not_linear_in_b_is_left_alone(tmp_path: Path, options: dict[str, bool]) -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "use_rslora": True, **options}
    adapter = load_adapter(saved(tmp_path / "a"))
    assert write_one_alpha(config, adapter.layout, adapter.tensors) == (config, adapter.layout, adapter.tensors)
    other = {**adapter.config, "peft_type": "LOHA", "use_rslora": True}
    assert write_one_alpha(other, adapter.layout, adapter.tensors)[0] == other


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "call", ["rslora(r=8,lora_alpha=16)", "lora(r=4,alpha_pattern=q_proj:20)", "pissa(r=2,use_rslora=true)"]
)
def test_exports_of_runs(tmp_path: Path, call: str) -> None:
    run = sites.run_of(tmp_path / "t", sites.llama(tmp_path / "m"), call, CausalLM())
    generator = np.random.default_rng(3)
    start = run.template.adapter.tensors
    state = {n: v + np.float32(0.1) * generator.standard_normal(v.shape, np.float32) for n, v in start.items()}
    site = run.site()
    sites.put(site, state)
    stock = run.stock(tmp_path / "out", state)
    difference = sites.outputs(stock, CausalLM()) - sites.outputs(site.model, CausalLM())
    assert float(difference.abs().max()) < 2e-5
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["use_rslora"], config["alpha_pattern"]) == (False, {})
    for _, module in stock.named_modules():
        if "default" in getattr(module, "r", {}):
            rank = module.lora_A["default"].weight.shape[0]
            assert module.scaling["default"] == pytest.approx(config["lora_alpha"] / rank, rel=1e-6)
