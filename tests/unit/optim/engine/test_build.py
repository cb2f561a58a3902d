"""Which parameters get the rule that was asked for, on models with matrices of all sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedcompress.errors import ConfigError
from fedcompress.optim import OPTIMIZERS, build_optimizer
from fedcompress.optim.engine.parameter_roles import find_layer_path, list_named_parameters


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


RULES = [name for name, row in OPTIMIZERS.items() if row.matrices_only]


def read_calls(optimizer: Any) -> dict[str, str]:
    return {n: group["rule"] for group in optimizer.param_groups for n in group["names"]}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("make", [qwen2_moe, grouped_queries, lora])
def test_a_matrix_smaller_than_the_default_rank_refuses_no_model(make: Any, name: str) -> None:
    """The default ranks are 16 to 256; there are matrices of 1, 4 and 8 rows."""
    torch.manual_seed(0)
    model = make()
    optimizer = build_optimizer(model, name, lr=1e-3)
    calls = read_calls(optimizer)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert set(calls) == set(trained), "nothing is left out"
    matrices = {n for n in calls if n.endswith(("expert_gate.weight", "proj.weight", "lora_A.default.weight"))}
    assert matrices
    assert all(calls[n].startswith(name) for n in matrices)
    before = {n: p.detach().clone() for n, p in trained.items()}
    ids = torch.arange(24)[None]
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    for n in matrices:
        assert not torch.equal(trained[n], before[n]), n
        assert trained[n].isfinite().all()


def test_real_shapes_of_small_models_are_taken() -> None:
    """SmolLM2-135M has keys of 192 rows, Qwen1.5-MoE a gate of one row; LoRA of rank 16 is narrow."""
    model = torch.nn.Module()
    for name, shape in {"k_proj": (576, 192), "shared_expert_gate": (2048, 1), "lora_A": (64, 16)}.items():
        model.add_module(name, torch.nn.Linear(*shape, bias=False))
    optimizer = build_optimizer(model, "apollo", lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = {n: s["m"].shape for n, s in optimizer.memory.items()}
    assert moments == {
        "k_proj.weight": (192, 576),
        "shared_expert_gate.weight": (1, 2048),
        "lora_A.weight": (16, 64),
    }


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_a_matrix_without_entries_is_left_to_the_rest() -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(0, 4, bias=False)])
    assert read_calls(build_optimizer(model, "galore", lr=1e-3)) == {"0.weight": "galore", "1.weight": "adamw"}
    with pytest.raises(ConfigError, match="must be a matrix"):
        build_optimizer(model[1], "galore", lr=1e-3)


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=6, num_heads=2, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config)


def bart() -> Any:
    from transformers import BartConfig, BartForConditionalGeneration

    sizes = {
        f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in (("layers", 6), ("ffn_dim", 8))
    }
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return BartForConditionalGeneration(BartConfig(vocab_size=20, d_model=8, **sizes, **heads))


def whisper() -> Any:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {"encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = WhisperConfig(vocab_size=20, d_model=8, encoder_layers=4, decoder_layers=4, pad_token_id=0, **sizes)
    return WhisperForConditionalGeneration(config)


def qwen2_vl() -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 1}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision))


@pytest.mark.parametrize(("make", "count"), [(t5, 12), (bart, 12), (whisper, 8), (qwen2_vl, 5), (grouped_queries, 2)])
def test_each_stack_of_layers_is_counted_apart(make: Any, count: int) -> None:
    layers: dict[int, set[str]] = {}
    for parameter in list_named_parameters(make()):
        layers.setdefault(parameter.layer, set()).add(find_layer_path(parameter.name))
    layers.pop(-1, None)
    assert sorted(layers) == list(range(count))
    assert all(len(paths) == 1 for paths in layers.values())


@pytest.mark.parametrize(("call", "active"), [("lisa(layers=2,update_gap=1)", 2), ("badam(update_gap=1)", 1)])
def test_as_many_layers_are_trained_as_were_asked_for(call: str, active: int) -> None:
    torch.manual_seed(0)
    model = t5()
    optimizer = build_optimizer(model, call, lr=1e-2)
    ids = torch.arange(12)[None]
    seen = set()
    for _ in range(12):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        moved = {find_layer_path(n) for n, p in model.named_parameters() if not torch.equal(p, before[n])} - {""}
        assert len(moved) == active
        seen |= moved
    assert {path.partition(".")[0] for path in seen} == {"encoder", "decoder"}


def test_layers_that_are_frozen_are_not_drawn() -> None:
    model = grouped_queries()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1." in name)
    optimizer = build_optimizer(model, "badam(update_gap=1)", lr=1e-2)
    ids = torch.arange(12)[None]
    for _ in range(3):
        before = model.model.layers[1].mlp.up_proj.weight.detach().clone()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        assert not torch.equal(model.model.layers[1].mlp.up_proj.weight, before)
