"""Updates inside of the backward pass."""

import pytest
import torch

from fedcompress.errors import ConfigError, NonFiniteError, TrainingError
from fedcompress.optim import build_optimizer
from fedcompress.optim.engine.fused import fuse
from tests.unit.optim.models import CALLS, batch, net, state, train


@pytest.mark.parametrize("call", [calls[0] for calls in CALLS.values()])
def test_fused_backward_takes_the_same_steps(call: str) -> None:
    plain, fused = net(), net()
    train(plain, build_optimizer(plain, call, lr=1e-2), 0, 6)
    optimizer = build_optimizer(fused, call, lr=1e-2)
    fuse(optimizer)
    train(fused, optimizer, 0, 6)
    assert all(torch.equal(a, b) for a, b in zip(state(plain).values(), state(fused).values(), strict=True))


def test_gradients_never_exist_together() -> None:
    model, seen = net(), []
    fuse(build_optimizer(model, "frugal", lr=1e-3))
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda _: seen.append(held(model)))
    model.loss(batch(0)).backward()
    assert held(model) == 0
    assert max(seen) <= max(p.numel() for p in model.parameters())


def held(model: torch.nn.Module) -> int:
    return sum(p.grad.numel() for p in model.parameters() if p.grad is not None)


def test_remove_gives_gradients_back() -> None:
    model = net()
    optimizer = build_optimizer(model, "adamw", lr=1e-2)
    fused = fuse(optimizer)
    train(model, optimizer, 0, 1)
    fused.remove()
    before = state(model)
    model.loss(batch(1)).backward()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), state(model).values(), strict=True))
    optimizer.step()
    assert not torch.equal(before["layers.0.weight"], model.layers[0].weight)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [("accumulation", 4, "added"), ("clip_norm", 1.0, "global norm"), ("scaler", object(), "overflow")],
)
def test_what_cannot_be_combined_is_refused(key: str, value: object, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        fuse(build_optimizer(net(), "adamw", lr=1e-3), **{key: value})


def test_a_sharded_parameter_is_refused_before_any_has_a_hook() -> None:
    model = net()
    optimizer = build_optimizer(model, "adamw", lr=1e-2)
    list(model.parameters())[-1].ds_shape = (1,)
    with pytest.raises(TrainingError, match="needs whole parameters"):
        fuse(optimizer)
    before = state(model)
    model.loss(batch(0)).backward()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), state(model).values(), strict=True))
    assert held(model)


def test_a_gradient_that_is_not_finite_stops_the_backward_pass() -> None:
    model = net()
    fuse(build_optimizer(model, "adamw", lr=1e-3))
    with pytest.raises(NonFiniteError, match="lm_head"):
        (model.loss(batch(0)) * float("inf")).backward()
