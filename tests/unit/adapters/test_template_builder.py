"""Templates of models and options that people use, against what PEFT makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from fedcompress.adapters.attach import build_peft_config
from fedcompress.adapters.base_model import BaseModel, build_base
from fedcompress.adapters.merged import save_merged
from fedcompress.config.objective import CausalLM
from fedcompress.errors import ConfigError
from fedcompress.merging import InMemoryUpdates, Merger, parse_rule
from tests.support import normal
from tests.unit.adapters import sites

SIZES = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}
TOKENS = {"vocab_size": sites.WORDS, "pad_token_id": 2}


def mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(**SIZES, **TOKENS, intermediate_size=24, num_local_experts=4, num_experts_per_tok=2)
    return MixtralForCausalLM(config)


def qwen3_moe() -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    config = Qwen3MoeConfig(**SIZES, **TOKENS, head_dim=4, intermediate_size=32, decoder_sparse_step=1, **experts)
    return Qwen3MoeForCausalLM(config)


def gpt_oss() -> Any:
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        **SIZES, **TOKENS, head_dim=4, intermediate_size=24, num_local_experts=4, num_experts_per_tok=2
    )
    return GptOssForCausalLM(config)


def gemma2() -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**SIZES, **TOKENS, head_dim=4, intermediate_size=24))


def tied_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SIZES, **TOKENS, intermediate_size=24, initializer_range=0.2, tie_word_embeddings=True)
    return LlamaForCausalLM(config)


def save(model: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    model.save_pretrained(folder)
    sites.tokenizer(folder)
    return folder


# PEFT warns of patterns for parameters, of projections that are drawn again, and of tied matrices.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
MIXTURES = [mixtral, qwen3_moe, gpt_oss]


@pytest.mark.parametrize("make", MIXTURES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("call", ["lora(r=4)", "lora(r=2,use_rslora=true)", "lora(r=2,targets=q_proj+v_proj)"])
def test_a_mixture_of_experts_is_whole_in_its_template(make: Any, call: str, tmp_path: Path) -> None:
    base = save(make(), tmp_path / "base")
    run = sites.run_of(tmp_path / "run", base, call, CausalLM())
    layout = run.template.adapter.layout
    config = {k: v for k, v in run.spec.config(CausalLM()).items()}
    reference = get_peft_model(build_base(BaseModel(path=base), CausalLM()), build_peft_config(config))
    assert layout.numel == sum(p.numel() for p in reference.parameters() if p.requires_grad)
    assert run.site().layout == layout, "a site builds the same"
    state = normal(layout, 1, 0.3)
    site = run.site()
    sites.put(site, state)
    stock = run.stock(tmp_path / "out", state)
    loaded = {n for n, _ in stock.named_parameters() if "lora_" in n}
    assert len(loaded) == len(layout.tensors), "stock PEFT has a place for every tensor"
    found, expected = (sites.outputs(model, CausalLM()) for model in (stock, site.model))
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, sites.outputs(build_base(BaseModel(path=base), CausalLM()).eval(), CausalLM()))


@pytest.mark.parametrize("make", MIXTURES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("rule", ["lora-ridge", "mean", "fedit"])
def test_factors_of_experts_are_merged_apart_from_those_of_matrices(make: Any, rule: str, tmp_path: Path) -> None:
    """A rule that solves for products must not take a stack of experts for one matrix: entries are averaged."""
    base = save(make(), tmp_path / "base")
    named = "targets=q_proj,target_parameters=mlp.experts.gate_up_proj+mlp.experts.down_proj"
    call = f"lora(r=2,{named})" if make is gpt_oss else "lora(r=2)"
    run = sites.run_of(tmp_path / "run", base, call, CausalLM())
    layout, start = run.template.adapter.layout, run.template.adapter.tensors
    stacked = [t.name for t in layout.tensors if ".experts." in t.name]
    assert stacked
    assert {layout.by_name[name].group for name in stacked} == {"other"}
    updates = [normal(layout, seed, 0.1) for seed in (1, 2)]
    step = Merger(rule=parse_rule(rule), layout=layout).merge(start, [1.0, 3.0], InMemoryUpdates(layout, updates))
    for name in stacked:
        expected = 0.25 * updates[0][name] + 0.75 * updates[1][name]
        assert abs(step[name] - expected).max() < 1e-6


@pytest.mark.parametrize("call", ["dora(r=4)", "vera(r=8)", "pissa(r=4)", "ia3"])
def test_attention_is_what_transformers_chooses(call: str, tmp_path: Path) -> None:
    base = save(gemma2(), tmp_path / "base")
    run = sites.run_of(tmp_path / "run", base, call, CausalLM())
    assert run.site().model.config._attn_implementation in ("sdpa", "eager")
    explicit = BaseModel(path=base, attention="eager")
    assert build_base(explicit, CausalLM()).config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("pattern", "ranks"),
    [
        ("layers.0.self_attn.k_proj:8+k_proj:2", {0: 8, 1: 2}),
        ("k_proj:2+layers.0.self_attn.k_proj:8", {0: 2, 1: 2}),
        ("layers.1.self_attn.k_proj:6", {0: 4, 1: 6}),
    ],
)
def test_the_first_key_of_a_pattern_counts_as_in_peft(pattern: str, ranks: dict[int, int], tmp_path: Path) -> None:
    base = sites.llama(tmp_path / "base")
    alphas = pattern.replace(":8", ":32")
    call = f"lora(r=4,lora_alpha=8,targets=q_proj+k_proj,rank_pattern={pattern},alpha_pattern={alphas})"
    run = sites.run_of(tmp_path / "run", base, call, CausalLM())
    state = normal(run.template.adapter.layout, 1, 0.1)
    site = run.site()
    sites.put(site, state)
    layers = {n: m for n, m in site.model.named_modules() if n.endswith("k_proj") and hasattr(m, "lora_A")}
    found = {int(n.split("layers.")[1][0]): m for n, m in layers.items()}
    assert {k: m.r["default"] for k, m in found.items()} == ranks
    alphas_by_rank = {8: 32, 2: 2, 6: 6, 4: 8}
    assert all(m.scaling["default"] == alphas_by_rank[ranks[k]] / ranks[k] for k, m in found.items())
    stock = run.stock(tmp_path / "out", state)
    assert torch.allclose(sites.outputs(stock, CausalLM()), sites.outputs(site.model, CausalLM()), atol=1e-4)


@pytest.mark.parametrize(
    ("option", "key", "value"),
    [
        ("trainable_token_indices=1+2", "trainable_token_indices", [1, 2]),
        ("trainable_token_indices=5", "trainable_token_indices", [5]),
        ("layers_to_transform=1", "layers_to_transform", [1]),
        ("use_rslora=True", "use_rslora", True),
        ("use_dora=False", "use_dora", False),
        ("exclude_modules=k_proj+v_proj", "exclude_modules", ["k_proj", "v_proj"]),
    ],
)
def test_options_as_peft_spells_them(option: str, key: str, value: Any, tmp_path: Path) -> None:
    base = sites.llama(tmp_path / "base")
    run = sites.run_of(tmp_path / "run", base, f"lora(r=4,targets=q_proj+k_proj,{option})", CausalLM())
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert config[key] == value
    state = normal(run.template.adapter.layout, 1, 0.1)
    site = run.site()
    sites.put(site, state)
    stock = run.stock(tmp_path / "out", state)
    assert torch.allclose(sites.outputs(stock, CausalLM()), sites.outputs(site.model, CausalLM()), atol=1e-4)


@pytest.mark.parametrize("targets", ["q_proj+lm_head", "q_proj+embed_tokens", "embed_tokens+lm_head"])
def test_lora_on_tied_matrices_is_merged_as_it_was_trained(targets: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = save(tied_llama(), tmp_path / "base")
    run = sites.run_of(tmp_path / "run", base, f"lora(r=4,targets={targets})", CausalLM())
    state = normal(run.template.adapter.layout, 1, 0.3)
    stock = run.stock(tmp_path / "adapter", state)
    save_merged(tmp_path / "merged", BaseModel(path=base), tmp_path / "adapter", CausalLM())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    expected = sites.outputs(stock, CausalLM())
    change = (expected - sites.outputs(AutoModelForCausalLM.from_pretrained(base).eval(), CausalLM())).abs().max()
    assert float((sites.outputs(merged, CausalLM()) - expected).abs().max()) < 1e-4 * float(change)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_tied_model_whose_tied_matrices_are_left_alone_stays_tied(tmp_path: Path) -> None:
    base = save(tied_llama(), tmp_path / "base")
    run = sites.run_of(tmp_path / "run", base, "lora(r=4,targets=q_proj)", CausalLM())
    run.stock(tmp_path / "adapter", normal(run.template.adapter.layout, 1, 0.3))
    save_merged(tmp_path / "merged", BaseModel(path=base), tmp_path / "adapter", CausalLM())
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    ("make", "targets", "unused"),
    [
        (tied_llama, "q_proj+query", "query"),
        (tied_llama, "q_proj+v_prj+k_prj", r"k_prj\+v_prj"),
        (qwen3_moe, "q_proj+w1+w2+w3", r"w1\+w2\+w3"),
    ],
)
def test_targets_that_name_nothing_are_refused(make: Any, targets: str, unused: str, tmp_path: Path) -> None:
    base = save(make(), tmp_path / "base")
    with pytest.raises(ConfigError, match=rf"adapter\.lora\.targets: {unused}: must be names of modules"):
        sites.run_of(tmp_path / "run", base, f"lora(r=2,targets={targets})", CausalLM())
