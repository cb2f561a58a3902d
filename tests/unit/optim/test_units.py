"""Experts that lie in one parameter are matrices of their own for rules for matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedcompress.optim import build_optimizer, combine_rank_states
from fedcompress.optim.engine.fused import fuse
from fedcompress.optim.engine.optimizer import LowMemoryOptimizer
from fedcompress.optim.memory_plan import Setup, plan
from fedcompress.optim.table import OPTIMIZERS
from fedcompress.optim.units import list_units
from tests.unit.optim.models import CALLS

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
RULES = [n for n, row in OPTIMIZERS.items() if row.matrices_only]


def mixtral(**changes: int) -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"intermediate_size": 24, "num_key_value_heads": 2, "num_local_experts": 4}
    return MixtralForCausalLM(MixtralConfig(**SIZES | sizes | changes))


def qwen3_moe() -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {"intermediate_size": 24, "moe_intermediate_size": 12, "num_key_value_heads": 2, "head_dim": 8}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **sizes, num_experts=3, num_experts_per_tok=2))


def deepseek_v3() -> Any:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    ranks = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    experts = {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 0,
    }
    sizes = {"intermediate_size": 24, "moe_intermediate_size": 12, "num_key_value_heads": 2}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**SIZES, **sizes, **ranks, **experts))


def gpt_oss() -> Any:
    from transformers import GptOssConfig, GptOssForCausalLM

    sizes = {"intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4}
    return GptOssForCausalLM(GptOssConfig(**SIZES, **sizes, num_experts_per_tok=2))


FAMILIES = [mixtral, qwen3_moe, deepseek_v3, gpt_oss]


def cut_by_hand(optimizer: LowMemoryOptimizer) -> tuple[LowMemoryOptimizer, dict[str, torch.Tensor]]:
    """An optimizer of the same rules over copies, with a parameter of two sides for each expert; and the parameters."""
    parameters = {}
    groups = []
    for group in optimizer.param_groups:
        names, layers = [], []
        for name, parameter, layer in zip(group["names"], group["params"], group["layers"], strict=True):
            is_stack = parameter.ndim == 3
            pieces = parameter.detach().unbind() if is_stack else [parameter.detach()]
            for number, piece in enumerate(pieces):
                names.append(f"{name}[{number}]" if is_stack else name)
                layers.append(layer)
                parameters[names[-1]] = torch.nn.Parameter(piece.clone())
        own = [parameters[n] for n in names]
        shapes = [list(p.shape) for p in own]
        settings = {key: group[key] for key in ("rule", "lr", "weight_decay")}
        groups.append({"params": own, "names": names, "shapes": shapes, "layers": layers, **settings})
    return LowMemoryOptimizer(groups, lr=1e-2), parameters


@pytest.mark.parametrize(
    ("make", "call"),
    [(mixtral, call) for name in RULES for call in CALLS[name]]
    + [(make, CALLS[name][0]) for make in FAMILIES[1:] for name in RULES],
)
def test_steps_are_those_of_separate_matrices(make: Any, call: str) -> None:
    torch.manual_seed(0)
    model = make()
    ours = build_optimizer(model, call, lr=1e-2, weight_decay=0.1)
    stacks = {n for n, p in model.named_parameters() if p.ndim == 3}
    assert len(stacks) == 2
    assert stacks <= {n for g in ours.param_groups if g["rule"].startswith(call.partition("(")[0]) for n in g["names"]}
    theirs, separate = cut_by_hand(ours)
    for _ in range(5):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            for unit in [unit for unit in separate if unit.partition("[")[0] == name]:
                number = unit.removeprefix(name).strip("[]")
                separate[unit].grad = (parameter.grad[int(number)] if number else parameter.grad).clone()
        ours.step()
        theirs.step()
    for name, parameter in model.named_parameters():
        pieces = [p for unit, p in separate.items() if unit.partition("[")[0] == name]
        assert torch.equal(parameter, torch.stack(pieces) if name in stacks else pieces[0]), name
    assert set(ours.memory) == set(separate)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("adamw", 8.0),
        ("adamw8bit", 2.03),
        ("frugal", 2.0),
        ("frugal(state=8bit)", 0.51),
        ("frugal(projection=svd)", 3.0),
        ("galore(rank=32)", 3.0),
        ("fira(rank=32)", 3.0),
        ("apollo(rank=32)", 2.0),
        ("apollo-mini", 0.14),
        ("q-galore(rank=32)", 0.64),
        ("lion", 4.0),
    ],
)
def test_the_bytes_of_the_table_hold_for_experts(call: str, expected: float) -> None:
    """Embedding, head and router are small here; the table's ranks are a quarter of a side."""
    model = mixtral(hidden_size=128, intermediate_size=128, num_key_value_heads=2, vocab_size=8, num_local_experts=6)
    numel = sum(p.numel() for p in model.parameters())
    optimizer = build_optimizer(model, call, lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    found = optimizer.state_bytes() / numel
    assert found == pytest.approx(expected, rel=0.15), f"{call}: {found:.2f} bytes a parameter"
    assert plan(model, Setup(optimizer=call, zero=0, dtype="fp32")).state == pytest.approx(
        optimizer.state_bytes(), rel=0.02
    )


def test_experts_have_owners_of_their_own() -> None:
    """No rank needs to hold the states of all experts of a layer."""
    one, four = (plan(mixtral(), Setup(optimizer="galore(rank=4)", zero=2, ranks=ranks)).state for ranks in (1, 4))
    assert four < 0.3 * one


def test_biases_of_experts_do_not_decay() -> None:
    groups = build_optimizer(gpt_oss(), "frugal", lr=1e-3, weight_decay=0.1).param_groups
    decays = {n: g["weight_decay"] for g in groups for n in g["names"]}
    biases = [n for n in decays if n.endswith("proj_bias")]
    assert len(biases) == 2
    assert all(decays[n] == (0.0 if n.endswith(("bias", "norm.weight", "sinks")) else 0.1) for n in decays)


def train(model: Any, optimizer: Any, steps: range) -> None:
    for step in steps:
        ids = torch.randint(50, (2, 16), generator=torch.Generator().manual_seed(step))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("call", ["frugal(update_gap=3)", "galore(rank=4,update_gap=3)", "ldadam(rank=4)"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_state_of_experts_goes_on(call: str, whole: bool) -> None:
    torch.manual_seed(0)
    model = mixtral()
    optimizer = build_optimizer(model, call, lr=1e-2)
    train(model, optimizer, range(3))
    again = mixtral()
    again.load_state_dict(model.state_dict())
    second = build_optimizer(again, call, lr=1e-2)
    second.load_state_dict(combine_rank_states([optimizer.state_dict()]) if whole else optimizer.state_dict())
    train(model, optimizer, range(3, 6))
    train(again, second, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_fused_backward_steps_experts() -> None:
    models = []
    for is_fused in (False, True):
        torch.manual_seed(0)
        models.append(mixtral())
        optimizer = build_optimizer(models[-1], "galore(rank=4,update_gap=3)", lr=1e-2)
        if is_fused:
            fuse(optimizer)
        train(models[-1], optimizer, range(4))
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))


def test_a_convolution_in_an_expert_is_no_stack() -> None:
    model = torch.nn.ModuleDict({"experts": torch.nn.Conv1d(4, 4, 3), "out": torch.nn.Linear(4, 4)})
    groups = build_optimizer(model, "galore", lr=1e-3).param_groups
    assert {u.name for g in groups if g["rule"] == "galore" for u in list_units(g)} == {"out.weight"}


@pytest.mark.parametrize("sides", [(1, 2), (0, 1)])
def test_experts_that_are_not_contiguous(sides: tuple[int, int]) -> None:
    """Transposed in each expert they are stepped; where experts lie in each other's rows they are, too."""
    models = [mixtral(), mixtral()]
    models[1].load_state_dict(models[0].state_dict())
    for experts in (layer.mlp.experts for layer in models[1].model.layers):
        experts.gate_up_proj.data = experts.gate_up_proj.data.transpose(*sides).contiguous().transpose(*sides)
        assert not experts.gate_up_proj.is_contiguous()
    for model in models:
        optimizer = build_optimizer(model, "galore(rank=4,update_gap=3)", lr=1e-2)
        for step in range(3):
            for number, parameter in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(100 * step + number)
                parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))
            optimizer.step()
    for ours, theirs in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
