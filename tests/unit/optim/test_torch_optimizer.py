"""What the torch optimizer does around the rules: loads, steps that are none, and what it holds."""

import weakref

import pytest
import torch

from fedcompress.optim import build
from fedcompress.optim.shards import Shard
from tests.unit.optim.models import batch, net, state, train


def trained(call: str, width: int = 16) -> dict:
    model = net(width=width)
    optimizer = build(model, call, lr=1e-2)
    train(model, optimizer, 0, 3)
    return optimizer.state_dict()


@pytest.mark.parametrize("call", ["adamw", "galore(rank=4)"])
def test_a_parameter_without_a_gradient_keeps_its_loaded_state(call: str) -> None:
    given, model = trained(call), net()
    optimizer = build(model, call, lr=1e-2)
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
    optimizer = build(model, "adamw", lr=1e-2, weight_decay=0.1)
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
    optimizer = build(model, call, lr=1e-2)
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
