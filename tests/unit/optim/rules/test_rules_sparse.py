"""LIFT and ID3: which entries are trained, and what becomes of their moments."""

import math

import pytest
import torch

from fedcompress.errors import ConfigError
from fedcompress.optim import ShardInfo, StepContext, build_optimizer, parse_optimizer
from fedcompress.optim.rules.id3 import ID3
from fedcompress.optim.rules.lift import LIFT
from tests.unit.optim.models import net, train


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
@pytest.mark.parametrize("basis", ["svd", "randomized"])
def test_lift_trains_the_largest_of_the_low_rank_approximation(shape: tuple[int, int], basis: str) -> None:
    rule, weight = LIFT(rank=3, filter_rank=4, basis=basis), drawn(*shape)
    delta, kept = rule.update(drawn(*shape, seed=1), {}, ShardInfo(name="w", shape=shape), StepContext(), weight)
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    near = ((left[:, :4] * values[:4]) @ right[:4]).abs().view(-1)
    largest = near.argsort(descending=True)[:150].sort().values
    assert kept["places"].dtype == torch.int32
    assert torch.equal(delta.view(-1).nonzero().view(-1), kept["places"].long())
    if basis == "svd":
        assert torch.equal(kept["places"].long(), largest)
    else:
        assert near[kept["places"].long()].sum() > 0.9 * near[largest].sum()


def test_lift_keeps_the_moments_of_entries_that_stay() -> None:
    shape, gap = (16, 16), 3
    rule, shard = LIFT(rank=2, filter_rank=3, update_gap=gap), ShardInfo(name="w", shape=(16, 16))
    weight = drawn(*shape)
    dense = {key: torch.zeros(shape, dtype=torch.float64) for key in ("m", "v")}
    kept: dict[str, object] = {}
    changed, last = 0, None
    for step in range(1, 12):
        grad = drawn(*shape, seed=step)
        delta, kept = rule.update(grad, kept, shard, StepContext(step=step), weight)
        places = kept["places"].long()
        mask = torch.zeros(16 * 16, dtype=torch.bool)
        mask[places] = True
        mask = mask.view(shape)
        for key, beta, value in (("m", 0.9, grad.double()), ("v", 0.999, grad.double() ** 2)):
            dense[key] = torch.where(mask, beta * dense[key] + (1 - beta) * value, 0.0)
            torch.testing.assert_close(kept[key].double(), dense[key][mask], rtol=1e-4, atol=1e-7)
        correction = math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        expected = torch.where(mask, correction * dense["m"] / (dense["v"].sqrt() + 1e-6), 0.0)
        torch.testing.assert_close(delta.double(), expected, rtol=1e-4, atol=1e-6)
        changed += last is not None and not torch.equal(last, places)
        last = places
        weight = weight + 0.3 * drawn(*shape, seed=100 + step)
    assert changed >= 3


@pytest.mark.parametrize("exp", [0.0, 0.5, 1.0])
def test_id3_unmasks_the_best_of_the_rest_step_by_step(exp: float) -> None:
    shape, steps = (12, 15), 7
    rule, shard, weight = ID3(density=0.25, steps=steps, exp=exp), ShardInfo(name="w", shape=(12, 15)), drawn(12, 15)
    chosen: set[int] = set()
    kept: dict[str, object] = {}
    for step in range(1, 11):
        grad = drawn(*shape, seed=step)
        delta, kept = rule.update(grad, kept, shard, StepContext(step=step), weight)
        score = (grad.abs() / (weight.abs() + 1e-3) ** exp).view(-1)
        count = min(45, math.ceil(45 * step / steps))
        for place in score.argsort(descending=True).tolist():
            if len(chosen) < count:
                chosen.add(place)
        assert set(kept["places"].tolist()) == chosen
        assert set(delta.view(-1).nonzero().view(-1).tolist()) == chosen
        assert len(kept["m"]) == len(chosen)
    assert len(chosen) == 45


@pytest.mark.parametrize("call", ["lift(rank=1,filter_rank=2,update_gap=50)", "id3(density=0.1,steps=1)"])
def test_masked_entries_neither_move_nor_decay(call: str) -> None:
    model = net()
    before = model.layers[1].weight.detach().clone()
    optimizer = build_optimizer(model, call, lr=1e-2, weight_decay=0.5)
    train(model, optimizer, 0, 1)
    kept = optimizer.memory["layers.1.weight"]["places"].long()
    same = (model.layers[1].weight == before).view(-1)
    assert not same[kept].any()
    assert same.sum() == same.numel() - kept.numel()


def test_trained_entries_decay() -> None:
    for call in ("lift(rank=1)", "id3(steps=1)"):
        rule, grad, weight = parse_optimizer(call), drawn(8, 8), drawn(8, 8, seed=1)
        plain, _ = rule.update(grad, {}, ShardInfo(name="w", shape=(8, 8)), StepContext(), weight)
        decayed, kept = rule.update(grad, {}, ShardInfo(name="w", shape=(8, 8)), StepContext(weight_decay=0.1), weight)
        places = kept["places"].long()
        expected = (plain.view(-1) + 0.1 * weight.view(-1))[places]
        torch.testing.assert_close(decayed.view(-1)[places], expected)


@pytest.mark.parametrize(
    "call",
    ["lift(rank=0)", "lift(basis=dct)", "lift(filter_rank=0)", "id3(density=2)", "id3(exp=-1)", "id3(steps=0)"],
)
def test_bad_parameters_are_refused(call: str) -> None:
    with pytest.raises(ConfigError, match=call.partition("(")[2].partition("=")[0]):
        parse_optimizer(call)
