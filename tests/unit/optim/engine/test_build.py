"""Which parameters get the rule that was asked for, on models with matrices of all sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedcompress.errors import ConfigError
from fedcompress.optim import build_optimizer


def qwen2_moe() -> Any:
    from transformers import AutoModelForCausalLM, Qwen2MoeConfig

    config = Qwen2MoeConfig(
        vocab_size=99,
        hidden_size=64,
        intermediate_size=64,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=4,
    )
    return AutoModelForCausalLM.from_config(config)


def grouped_queries() -> Any:
    """Keys and values of two heads for sixteen of queries, as small models have them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=99, intermediate_size=96, num_hidden_layers=2, **sizes))


def lora() -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(grouped_queries(), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))


RULES = ["galore", "fira", "q-galore", "ldadam", "dct-adamw", "apollo"]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    ("make", "rank", "rest"),
    [
        (qwen2_moe, 16, ["mlp.shared_expert_gate.weight", "mlp.gate.weight"]),
        (grouped_queries, 16, ["k_proj.weight", "v_proj.weight"]),
    ],
)
def test_one_small_matrix_refuses_no_model(make: Any, name: str, rank: int, rest: list[str]) -> None:
    torch.manual_seed(0)
    model = make()
    optimizer = build_optimizer(model, f"{name}(rank={rank})", lr=1e-3)
    rules = {n: group["rule"] for group in optimizer.param_groups for n in group["names"]}
    assert set(rules) == {n for n, _ in model.named_parameters()}, "nothing is left out"
    small = {n for n in rules if n.endswith(tuple(rest))}
    assert small
    assert all(rules[n].startswith("adamw") for n in small)
    large = {n for n in rules if n.endswith(("q_proj.weight", "o_proj.weight"))}
    assert large
    assert all(rules[n].startswith(name) for n in large)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    ids = torch.arange(24)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    for n in small | large:
        assert not torch.equal(dict(model.named_parameters())[n], before[n])


@pytest.mark.parametrize("name", RULES)
def test_a_rank_that_no_matrix_has_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"optimizer.{name}.rank: 16: must be at most 4, the smaller side of"):
        build_optimizer(lora(), f"{name}(rank=16)", lr=1e-3)
