"""What the torch optimizer does around the rules: loads, steps that are none, and what it holds."""

import copy
import weakref
from dataclasses import replace

import pytest
import torch

from fedcompress.optim import build_optimizer, combine_rank_states
from fedcompress.optim.engine.shards import Shard
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


@pytest.mark.parametrize("call", ["adamw", "lion", "frugal(carry=keep)", "galore(rank=4)", "adamw(state=8bit)"])
def test_a_state_dict_stays_as_it_was_when_its_optimizer_steps_on(call: str) -> None:
    """A trial step can be taken back, and another optimizer starts from what it was given, not from what came after."""
    model = net(width=64)
    optimizer = build_optimizer(model, call, lr=1e-2)
    train(model, optimizer, 0, 3)
    start, given = state(model), optimizer.state_dict()
    kept = copy.deepcopy(given)
    other = net(width=64)
    second = build_optimizer(other, call, lr=1e-2)
    second.load_state_dict(given)
    train(model, optimizer, 3, 6)
    optimizer.load_state_dict(given)
    ends = [run_on(model, optimizer, start), run_on(other, second, start)]
    third = build_optimizer(other, call, lr=1e-2)
    third.load_state_dict(kept)
    right = run_on(other, third, start)
    for end in ends:
        assert all(torch.equal(end[name], right[name]) for name in right)


@pytest.mark.parametrize("call", ["adamw", "galore(rank=4)"])
def test_a_whole_state_dict_and_one_that_no_step_has_used_stay_as_they_were(call: str) -> None:
    model = net()
    optimizer = build_optimizer(model, call, lr=1e-2)
    train(model, optimizer, 0, 3)
    whole = optimizer.whole_state_dict()
    second = build_optimizer(net(), call, lr=1e-2)
    second.load_state_dict(whole)
    given = [whole, second.state_dict()]
    kept = copy.deepcopy(given)
    train(model, optimizer, 3, 5)
    for now, before in zip(given, kept, strict=True):
        for name, entry in before["memory"].items():
            assert all(torch.equal(now["memory"][name]["state"][k], entry["state"][k]) for k in ("m", "v"))


def run_on(model: torch.nn.Module, optimizer: torch.optim.Optimizer, start: dict) -> dict[str, torch.Tensor]:
    """Weights after three more steps from the given ones."""
    model.load_state_dict(start)
    train(model, optimizer, 3, 6)
    return state(model)


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


@pytest.mark.parametrize("call", ["frugal(projection=blocks,update_gap=3)", "badam(update_gap=3)", "galore(rank=4)"])
def test_a_checkpoint_at_the_start_of_a_round_goes_on_as_without_it(call: str) -> None:
    """A state that is saved between ``new_round`` and the next step counts the steps of the round from 0."""
    through, model = net(), net()
    optimizer, first = (build_optimizer(m, call, lr=1e-2) for m in (through, model))
    for built, trained_model in ((optimizer, through), (first, model)):
        train(trained_model, built, 0, 4)
        built.new_round(3, state="keep")
    second = build_optimizer(model, call, lr=1e-2)
    second.load_state_dict(first.state_dict())
    train(through, optimizer, 4, 8)
    train(model, second, 4, 8)
    assert all(torch.equal(a, b) for a, b in zip(state(through).values(), state(model).values(), strict=True))


def test_a_parameter_that_has_no_state_yet_is_in_the_round_of_the_checkpoint() -> None:
    through, model = net(), net()
    optimizer, first = (build_optimizer(m, "frugal(update_gap=3)", lr=1e-2) for m in (through, model))
    optimizer.new_round(5)
    first.new_round(5)
    second = build_optimizer(model, "frugal(update_gap=3)", lr=1e-2)
    second.load_state_dict(first.state_dict())
    train(through, optimizer, 0, 2)
    train(model, second, 0, 2)
    assert all(torch.equal(a, b) for a, b in zip(state(through).values(), state(model).values(), strict=True))


def test_a_state_from_before_a_key_of_groups_was_known_is_taken() -> None:
    """What follows from the model stays as it is; rates and the mode of the weights are taken."""
    model = net()
    optimizer = build_optimizer(model, "galore(rank=4,update_gap=3)", lr=1e-2)
    train(model, optimizer, 0, 3)
    old = optimizer.state_dict()
    for group in old["param_groups"]:
        for key in ("stacks", "averaged", "params"):
            del group[key]
        group["layers"] = [7] * len(group["layers"])
        group["lr"] = 5e-3
    again = build_optimizer(model, "galore(rank=4,update_gap=3)", lr=1e-2)
    again.load_state_dict({key: value for key, value in old.items() if key != "replicated"})
    assert [g["layers"] for g in again.param_groups] == [g["layers"] for g in optimizer.param_groups]
    assert {g["lr"] for g in again.param_groups} == {5e-3}
    train(model, again, 3, 4)
