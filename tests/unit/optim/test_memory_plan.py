"""Memory of a rank before it exists."""

import json

import pytest
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from fedcompress.cli.main import app
from fedcompress.errors import ConfigError
from fedcompress.optim import build_optimizer
from fedcompress.optim.memory_plan import GIB, MemoryPlan, Setup, plan
from tests.unit.optim.models import CALLS

LLAMA = LlamaConfig(vocab_size=200, hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=2)
NUMEL = 2 * 200 * 96 + 2 * (4 * 96 * 96 + 3 * 96 * 160 + 2 * 96) + 96


def count(**setup: object) -> MemoryPlan:
    return plan(LlamaForCausalLM(LLAMA), Setup(**{"optimizer": "adamw", "length": 16, **setup}))


@pytest.mark.parametrize("call", [calls[0] for calls in CALLS.values()])
def test_the_state_is_what_one_process_allocates(call: str) -> None:
    model = LlamaForCausalLM(LLAMA)
    optimizer = build_optimizer(model, call, lr=1e-3)
    model(input_ids=(ids := model.model.embed_tokens.weight.new_zeros(2, 8).long()), labels=ids).loss.backward()
    for _ in range(4):  # the entries of id3 grow
        optimizer.step()
    predicted = plan(model, Setup(optimizer=call, zero=0, dtype="fp32")).state
    assert optimizer.state_bytes() == pytest.approx(predicted, rel=0.02)


def test_parts_of_each_stage() -> None:
    bf16 = [count(zero=stage, ranks=4) for stage in (0, 1, 2, 3)]
    quarter = NUMEL / 4
    assert [p.weights for p in bf16] == pytest.approx([2 * NUMEL] * 3 + [2 * quarter], rel=1e-3)
    assert [p.masters for p in bf16] == pytest.approx([4 * NUMEL] + [4 * quarter] * 3, rel=1e-3)
    assert [p.gradients for p in bf16] == pytest.approx(
        [6 * NUMEL, 2 * NUMEL + 4 * quarter, 6 * quarter, 6 * quarter], rel=1e-3
    )
    assert [p.state for p in bf16] == pytest.approx([8 * NUMEL] + [8 * quarter] * 3, rel=1e-3)
    assert count(zero=0, dtype="fp32").masters == 0


def test_matrices_of_an_owner_are_not_cut() -> None:
    galore = count(optimizer="galore(rank=8)", zero=3, ranks=4)
    whole = count(optimizer="galore(rank=8)", zero=3, ranks=1)
    assert whole.state / 4 < galore.state < whole.state / 2


def test_the_smallest_card_that_fits() -> None:
    made = count()
    assert made.fits == 8
    sizes = {"weights": 100 * GIB, "masters": 0, "gradients": 0, "state": 0, "buffers": 0, "activations": 0}
    assert MemoryPlan(parameters=1, trainable=1, **sizes).fits == 141
    assert MemoryPlan(parameters=1, trainable=1, **{**sizes, "state": 900 * GIB}).fits == 0


def test_checkpointing_takes_less() -> None:
    assert count(checkpointing=True).activations < count().activations


def test_a_rule_that_gets_little_of_the_model_is_noted() -> None:
    wide = LlamaConfig(
        vocab_size=9000, hidden_size=96, intermediate_size=160, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(wide)
    own = sum(p.numel() for n, p in model.named_parameters() if "proj" in n) / sum(
        p.numel() for p in model.parameters()
    )
    found = plan(model, Setup(optimizer="frugal", ranks=2)).notes[-1]
    assert found.startswith(f"frugal steps {own:.0%} of what is trained")
    assert found.endswith("adamw the rest")
    assert not any("what is trained" in n for n in plan(model, Setup(optimizer="adamw")).notes)
    assert not any("what is trained" in n for n in count(optimizer="galore(rank=8)").notes)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("zero", 4, "0, 1, 2 or 3"),
        ("dtype", "int8", "one of"),
        ("ranks", 0, "at least 1"),
        ("optimizer", "x", "one of"),
    ],
)
def test_bad_setups_name_field_and_rule(key: str, value: object, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        count(**{key: value})


@pytest.mark.filterwarnings("ignore")
def test_the_command(tmp_path) -> None:
    LLAMA.save_pretrained(tmp_path)
    common = ["plan", str(tmp_path), "--optimizer", "adamw", "--optimizer", "galore(rank=8)", "--gpus", "2"]
    shown = CliRunner().invoke(app, common)
    assert shown.exit_code == 0, shown.output
    assert "galore(rank=8)" in shown.output
    found = json.loads(CliRunner().invoke(app, [*common, "--json", "--lora-rank", "8"]).stdout)
    assert [p["optimizer"] for p in found["plans"]] == ["adamw", "galore(rank=8)"]
    assert found["plans"][0]["trainable"] < 0.5 * found["plans"][0]["parameters"]


@pytest.mark.filterwarnings("ignore")
def test_the_command_refuses_what_is_no_model(tmp_path) -> None:
    shown = CliRunner().invoke(app, ["plan", str(tmp_path / "nothing")])
    assert shown.exit_code != 0
