"""AdamP against a slow twin and the published implementations."""

import math

import pytest
import torch

from fedcompress.errors import ConfigError
from fedcompress.optim import ShardInfo, StepContext, build_optimizer, parse_optimizer
from fedcompress.optim.rules.adamp import AdamP
from tests.unit.optim.models import net, state, train


def twin_direction(rule: AdamP, grads: list[torch.Tensor], weights: list[torch.Tensor], decay: float) -> torch.Tensor:
    """The last direction, row by row, in float64 and from the definition."""
    first = second = torch.zeros_like(grads[0], dtype=torch.float64)
    for grad in grads:
        first = rule.beta1 * first + (1 - rule.beta1) * grad.double()
        second = rule.beta2 * second + (1 - rule.beta2) * grad.double() ** 2
    t = len(grads)
    step = (first / (1 - rule.beta1**t)) / ((second / (1 - rule.beta2**t)).sqrt() + rule.eps)
    grad, weight = grads[-1].double(), weights[-1].double()

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return abs(float((a * b).sum())) / (float(a.norm()) * float(b.norm()))

    def tangent(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a - (a * b).sum() / (b * b).sum() * b

    if all(cosine(g, w) < rule.delta / math.sqrt(w.numel()) for g, w in zip(grad, weight, strict=True)):
        step, decay = torch.stack([tangent(s, w) for s, w in zip(step, weight, strict=True)]), decay * rule.wd_ratio
    elif cosine(grad, weight) < rule.delta / math.sqrt(weight.numel()):
        step, decay = tangent(step, weight), decay * rule.wd_ratio
    return step + decay * weight


def inputs(kind: str, steps: int = 4) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    made = torch.Generator().manual_seed(0)
    weights = [torch.randn(6, 40, generator=made) for _ in range(steps)]
    grads = [torch.randn(6, 40, generator=made) for _ in range(steps)]
    for i, (g, w) in enumerate(zip(grads, weights, strict=True)):
        if kind == "rows":
            grads[i] = g - (g * w).sum(1, keepdim=True) / (w * w).sum(1, keepdim=True) * w
        elif kind == "whole":
            grads[i] = g - (g * w).sum() / (w * w).sum() * w
        else:
            grads[i] = g + w
    return grads, weights


@pytest.mark.parametrize("kind", ["rows", "whole", "neither"])
def test_it_is_the_twin(kind: str) -> None:
    rule, (grads, weights) = AdamP(), inputs(kind)
    kept: dict[str, object] = {}
    shard = ShardInfo(name="w", shape=(6, 40))
    for step, (grad, weight) in enumerate(zip(grads, weights, strict=True), start=1):
        delta, kept = rule.update(grad, kept, shard, StepContext(step=step, weight_decay=0.3), weight)
    torch.testing.assert_close(delta.double(), twin_direction(rule, grads, weights, 0.3), rtol=1e-4, atol=2e-6)
    without = delta - 0.3 * (0.1 if kind != "neither" else 1) * weights[-1]
    radial = (without * weights[-1]).sum(1).abs().max() if kind == "rows" else (without * weights[-1]).sum().abs()
    assert (radial < 1e-4) == (kind != "neither")


def test_vectors_are_stepped_by_adam() -> None:
    grad, shard = torch.randn(40, generator=torch.Generator().manual_seed(0)), ShardInfo(name="b", shape=(40,))
    ours = parse_optimizer("adamp").update(grad, {}, shard, StepContext(), torch.ones(40))[0]
    assert torch.equal(ours, parse_optimizer("adamw").update(grad, {}, shard, StepContext(), None)[0])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_it_is_the_published_one(weight_decay: float) -> None:
    """With hardly an eps, which this one adds before the correction of bias, and the authors' after it."""
    published = pytest.importorskip("pytorch_optimizer")
    ours, theirs = net(), net()
    train(ours, build_optimizer(ours, "adamp(eps=1e-14)", lr=1e-2, weight_decay=weight_decay), 0, 20)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = published.AdamP(groups, lr=1e-2, betas=(0.9, 0.999), eps=1e-14, weight_decouple=True)
    train(theirs, optimizer, 0, 20)
    for one, other in zip(state(ours).values(), state(theirs).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-6)


def test_a_scalar_is_refused() -> None:
    with pytest.raises(ConfigError, match="adamw"):
        AdamP().check("temperature", ())
