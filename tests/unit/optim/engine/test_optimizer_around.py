"""What people do around an optimizer: fork it, go back with it, add groups, hook it, compile the model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from fedcompress.errors import ConfigError, TrainingError
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
