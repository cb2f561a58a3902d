"""What people do around an optimizer: fork it, go back with it, add groups, hook it, compile the model."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch

from fedcompress.errors import ConfigError, StateError, TrainingError
from fedcompress.optim import build_optimizer
from fedcompress.optim.engine.fused import fuse
from fedcompress.optim.state.projection import limit_growth

CALLS = ["adamw", "lion", "galore(rank=2)", "adamw8bit", "frugal"]


def net(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 8))


def step(model: Any, optimizer: Any, seed: int) -> None:
    inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(inputs).square().sum().backward()
    optimizer.step()


def weights(model: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("call", CALLS)
def test_what_is_loaded_does_not_follow_the_giver(call: str) -> None:
    giver, receiver, reference = net(), net(), net()
    optimizers = [build_optimizer(model, call, lr=1e-2) for model in (giver, receiver, reference)]
    for seed in range(3):
        step(giver, optimizers[0], seed)
    state = optimizers[0].state_dict()
    optimizers[2].load_state_dict(copy.deepcopy(state))
    optimizers[1].load_state_dict(state)
    step(giver, optimizers[0], 3)
    for model, optimizer in ((receiver, optimizers[1]), (reference, optimizers[2])):
        step(model, optimizer, 4)
    assert all(torch.equal(a, b) for a, b in zip(weights(receiver), weights(reference), strict=True))


@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel])
@pytest.mark.parametrize("call", CALLS)
def test_a_wrapped_model_takes_the_state_of_the_model(call: str, wrap: Any) -> None:
    plain, wrapped = net(), net()
    first = build_optimizer(plain, call, lr=1e-2)
    step(plain, first, 0)
    second = build_optimizer(wrap(wrapped), call, lr=1e-2)
    wrapped.load_state_dict(plain.state_dict())
    second.load_state_dict(first.state_dict())
    step(plain, first, 1)
    step(wrapped, second, 1)
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(wrapped), strict=True))


def test_a_state_that_was_saved_under_wrapped_names_is_taken() -> None:
    plain, other = net(), net()
    first, second = (build_optimizer(model, "adamw", lr=1e-2) for model in (plain, other))
    step(plain, first, 0)
    state = first.state_dict()
    for group in state["param_groups"]:  # as earlier versions wrote them
        group["names"] = [f"_orig_mod.{name}" for name in group["names"]]
    state["memory"] = {f"_orig_mod.{name}": entry for name, entry in state["memory"].items()}
    other.load_state_dict(plain.state_dict())
    second.load_state_dict(state)
    step(plain, first, 1)
    step(other, second, 1)
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(other), strict=True))


def test_a_group_that_is_added_later_is_refused_at_once() -> None:
    model = net()
    model[1].weight.requires_grad_(False)
    optimizer = build_optimizer(model, "frugal", lr=1e-2)
    model[1].weight.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"param_group: 1 parameters: cannot be added later: build"):
        optimizer.add_param_group({"params": [model[1].weight]})
    step(model, optimizer, 0)


def test_hooks_are_called() -> None:
    model, seen = net(), []
    optimizer = build_optimizer(model, "adamw", lr=1e-2)
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("before save"))
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "note": 1})
    optimizer.register_load_state_dict_pre_hook(lambda o, state: {k: v for k, v in state.items() if k != "note"})
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append("after load"))
    step(model, optimizer, 0)
    state = optimizer.state_dict()
    assert state["note"] == 1
    optimizer.load_state_dict(state)
    assert seen == ["before save", "after load"]


def test_a_second_gradient_is_noticed_by_fused_backward() -> None:
    model = net()
    optimizer = build_optimizer(model, "adamw", lr=1e-2)
    fuse(optimizer)
    inputs = torch.randn(4, 8)
    for _ in range(3):
        model(inputs).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    model(inputs[:2]).sum().backward()
    with pytest.raises(TrainingError, match=r"fused-accumulation|a second gradient before optimizer.step"):
        model(inputs[2:]).sum().backward()


def test_zeros_do_not_lift_the_limit() -> None:
    ones, growth = torch.ones(2, 2), 1.01
    _, last = limit_growth(ones.clone(), None, growth)
    _, kept = limit_growth(torch.zeros(2, 2), last, growth)
    assert kept == last
    limited, _ = limit_growth(100 * ones, kept, growth)
    assert float(limited.norm()) == pytest.approx(growth * float(last))
    free, _ = limit_growth(100 * ones, torch.tensor(0.0), growth)
    assert float(free.norm()) == pytest.approx(200)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("through_a_file", [False, True])
def test_a_copy_of_model_and_optimizer_goes_on_by_itself(call: str, through_a_file: bool) -> None:
    pair = (net(), None)
    pair = (pair[0], build_optimizer(pair[0], call, lr=1e-2, weight_decay=0.1, seed=3))
    for seed in range(3):
        step(*pair, seed)
    if through_a_file:
        buffer = io.BytesIO()
        torch.save(pair, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    else:
        other = copy.deepcopy(pair)
    before = weights(pair[0])
    for seed in range(3, 6):
        step(*other, seed)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(pair[0]), strict=True))
    for seed in range(3, 6):
        step(*pair, seed)
    assert all(torch.equal(a, b) for a, b in zip(weights(pair[0]), weights(other[0]), strict=True))


def test_rates_may_be_tensors_and_gradients_scaled() -> None:
    model, other = net(), net()
    first, second = (build_optimizer(m, "galore(rank=2)", lr=1e-2, weight_decay=0.1) for m in (model, other))
    for group in first.param_groups:
        group["lr"] = torch.tensor(1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for seed in range(4):
        inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
        first.zero_grad()
        scaler.scale(model(inputs).square().sum()).backward()
        scaler.step(first)
        scaler.update()
        step(other, second, seed)
    for ours, theirs in zip(weights(model), weights(other), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rest", ["frugal", "galore(rank=2)", "id3"])
def test_a_rule_that_cannot_have_the_rest_is_refused_at_once(rest: str) -> None:
    with pytest.raises(ConfigError, match="must be a matrix; give it to adamw"):
        build_optimizer(net(), "frugal", lr=1e-2, rest=rest)


def test_a_rule_that_gets_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    build_optimizer(torch.nn.LayerNorm(8), "galore", lr=1e-2)
    assert "galore steps nothing, since no weight that is trained is of a linear layer; adamw steps all" in caplog.text


def test_flattened_parameters_are_refused_by_rules_for_matrices() -> None:
    class FullyShardedDataParallel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat = torch.nn.Parameter(torch.ones(8))

    with pytest.raises(ConfigError, match="fully_shard"):
        build_optimizer(FullyShardedDataParallel(), "galore", lr=1e-2)
    build_optimizer(FullyShardedDataParallel(), "adamw", lr=1e-2)


@pytest.mark.parametrize("call", ["adamw", "galore(rank=2)", "frugal"])
def test_parameters_that_are_unfrozen_begin_where_others_go_on(call: str, caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    model[0].requires_grad_(False)
    first = build_optimizer(model, call, lr=1e-2)
    for seed in range(3):
        step(model, first, seed)
    model[0].requires_grad_(True)
    second = build_optimizer(model, call, lr=5e-3)
    second.load_state_dict(first.state_dict())
    assert "2 parameters are new, as 0." in caplog.text
    step(model, second, 3)
    assert {n: s["step"] for n, s in second.memory.items()} == {"0.weight": 1, "0.bias": 1, "1.weight": 4, "1.bias": 4}
    assert {g["lr"] for g in second.param_groups} == {1e-2}
    with pytest.raises(StateError, match=r"has 0\.weight and 1 more, which are not trained here"):
        first.load_state_dict(second.state_dict())


def test_a_state_of_another_rule_or_shape_names_the_parameter() -> None:
    given = build_optimizer(net(), "galore(rank=2)", lr=1e-2).state_dict()
    with pytest.raises(StateError, match=r"0.weight: rule and shape \('galore\(rank=2\)', .*must be \('adamw', "):
        build_optimizer(net(), "adamw", lr=1e-2).load_state_dict(given)
    other = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Linear(12, 8))
    with pytest.raises(StateError, match=r"\[16, 8\]\): must be .*\[12, 8\]"):
        build_optimizer(other, "galore(rank=2)", lr=1e-2).load_state_dict(given)
