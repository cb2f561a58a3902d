"""What the torch optimizer does around the rules: loads, steps that are none, and what it holds."""

import copy
import weakref
from dataclasses import replace

import pytest
import torch

from fedcompress.optim import build_optimizer, combine_rank_states
from fedcompress.optim.engine.shards import Shard
from fedcompress.optim.state.moment_storage import move_to_device
from tests.unit.optim.models import batch, net, state, train


def trained(call: str, width: int = 16) -> dict:
    model = net(width=width)
    optimizer = build_optimizer(model, call, lr=1e-2)
    train(model, optimizer, 0, 3)
    return optimizer.state_dict()


@pytest.mark.parametrize("call", ["adamw", "frugal(carry=keep)", "galore(rank=4)", "adamw(state=8bit)"])
def test_a_loaded_state_dict_is_not_written_to(call: str) -> None:
    given = trained(call, width=64)
    before, models = copy.deepcopy(given), [net(width=64), net(width=64)]
    for model in models:
        optimizer = build_optimizer(model, call, lr=1e-2)
        optimizer.load_state_dict(given)
        train(model, optimizer, 3, 6)
    assert all(torch.equal(a, b) for a, b in zip(*(state(m).values() for m in models), strict=True))
    for name, entry in before["memory"].items():
        for key, value in entry["state"].items():
            torch.testing.assert_close(given["memory"][name]["state"][key], value, rtol=0, atol=0)


def test_a_part_of_a_loaded_state_does_not_hold_the_whole() -> None:
    """As under ZeRO: a run of entries, in a copy of the weights."""
    model = net()
    optimizer = build_optimizer(model, "schedule-free", lr=1e-2)
    train(model, optimizer, 0, 2)
    whole = combine_rank_states([optimizer.state_dict()])
    parameter = optimizer._parameters["layers.2.weight"]
    optimizer.load_state_dict(whole)
    piece = replace(parameter, start=32, numel=16)
    group = optimizer.param_groups[0]
    optimizer._run_rule(group, optimizer._rules[group["rule"]], torch.ones(16), piece, torch.ones(16))
    for key in ("v", "z"):
        assert optimizer.memory[parameter.name][key].untyped_storage().nbytes() == 4 * 16


def test_a_loaded_state_follows_the_gradient_to_its_device() -> None:
    kept = {"m": torch.ones(3), "v": {"codes": torch.ones(3), "shape": [3]}, "age": 4}
    there = move_to_device(kept, "meta")
    assert there["m"].device.type == there["v"]["codes"].device.type == "meta"
    assert (there["v"]["shape"], there["age"]) == ([3], 4)
    assert move_to_device(kept, "cpu")["m"] is kept["m"]
    assert move_to_device(kept, "cpu", copy=True)["m"].data_ptr() != kept["m"].data_ptr()


@pytest.mark.parametrize("call", ["adamw", "galore(rank=4)"])
def test_a_parameter_without_a_gradient_keeps_its_loaded_state(call: str) -> None:
    given, model = trained(call), net()
    optimizer = build_optimizer(model, call, lr=1e-2)
    optimizer.load_state_dict(given)
    model.loss(batch(3)).backward()
    model.layers[1].weight.grad = model.lm_head.weight.grad = None
    optimizer.step()
    after = optimizer.state_dict()["memory"]
    for name in ("layers.1.weight", "lm_head.weight"):
        assert after[name]["state"]["step"] == 3
        assert torch.equal(after[name]["state"]["m"], given["memory"][name]["state"]["m"])
    assert after["layers.0.weight"]["state"]["step"] == 4


def copies(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """Float32 copies of the weights in the groups, as DeepSpeed's 16-bit optimizers of stage 0 have."""
    for group in optimizer.param_groups:
        group["params"] = [torch.nn.Parameter(p.detach().float().clone()) for p in group["params"]]
    return [p for group in optimizer.param_groups for p in group["params"]]


def test_only_the_first_step_on_zeros_is_a_rehearsal() -> None:
    model = net()
    optimizer = build_optimizer(model, "adamw", lr=1e-2, weight_decay=0.1)
    optimizer.load_state_dict(trained("adamw") | {"param_groups": optimizer.state_dict()["param_groups"]})
    held = copies(optimizer)
    for parameter in held:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert not optimizer.calls, "the step that DeepSpeed makes at the start counted, or took the loaded state"
    optimizer.new_round(1)
    optimizer.step()
    assert set(optimizer.calls.values()) == {1}, "a step on zeros after it was skipped"
    assert len(optimizer.calls) == len(held)


@pytest.mark.parametrize("call", ["adamw", "galore(rank=4)"])
def test_float32_gradients_of_bfloat16_weights_are_never_there_together(call: str, monkeypatch) -> None:
    model = net(width=64).bfloat16()
    optimizer = build_optimizer(model, call, lr=1e-2)
    model.loss(batch(0)).backward()
    made, alive, grad_of = [], [], Shard.grad

    def noted(shard: Shard) -> torch.Tensor:
        grad = grad_of(shard)
        made.append(weakref.ref(grad))
        alive.append(sum(ref() is not None for ref in made))
        return grad

    monkeypatch.setattr(Shard, "grad", noted)
    optimizer.step()
    assert len(alive) == len(state(model))
    assert max(alive) <= 2
