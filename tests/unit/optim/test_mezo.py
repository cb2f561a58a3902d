"""MeZO: replays equal runs, and its pairs are the codec's."""

import numpy as np
import pytest
import torch

from fedcompress.codecs.byte_io import Reader
from fedcompress.codecs.codes.seeds import Seeds, direction, encode_pairs
from fedcompress.errors import ConfigError, NonFiniteError
from fedcompress.optim import mezo
from fedcompress.types import TensorSpec
from tests.unit.optim.models import Net, batch, net, state

LR, EPS = 1e-4, 1e-3


def run(model: Net, steps: int, lr: float = LR) -> list[mezo.Pair]:
    pairs = []
    for step in range(steps):
        seed, slope, _ = mezo.step(model, lambda: model.loss(batch(0)).float(), seed=1000 + step, eps=EPS, lr=lr)
        pairs.append((seed, slope))
    return pairs


def members(model: torch.nn.Module) -> list[TensorSpec]:
    return [TensorSpec(name=n, shape=tuple(p.shape), dtype="float32") for n, p in model.named_parameters()]


def distance(one: torch.nn.Module, other: torch.nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((a.detach().double() - b.detach().double()).abs().max().item() for a, b in pairs)


def test_a_replay_equals_the_run() -> None:
    ran, replayed = net(), net()
    mezo.replay(replayed, run(ran, 20), LR)
    assert distance(ran, net()) > 1e-3
    assert distance(ran, replayed) < 5e-6  # rounding of 20 walks of weights up to 3


def test_a_replay_in_bfloat16_equals_the_run_to_the_bit() -> None:
    ran, replayed = net().bfloat16(), net().bfloat16()
    mezo.replay(replayed, run(ran, 20, lr=1e-2), 1e-2)
    assert distance(ran, net().bfloat16()) > 1e-2
    assert distance(ran, replayed) == 0


def test_the_change_is_what_the_codec_decodes() -> None:
    model = net()
    before = state(model)
    pairs = run(model, 20)
    body = encode_pairs(mezo.changes(pairs, LR))
    assert len(body) < 20 * (4 + 2) + 8
    decoded = Seeds().decode(members(model), Reader(body))
    for (name, after), change in zip(state(model).items(), decoded, strict=True):
        np.testing.assert_allclose((after - before[name]).numpy(), change, rtol=0, atol=5e-6)


def test_the_slope_is_that_of_the_loss_along_the_direction() -> None:
    model = net()
    loss = model.loss(batch(0))
    loss.backward()
    along = sum(
        float(p.grad.reshape(-1) @ torch.from_numpy(direction(5, m)))
        for p, m in zip(model.parameters(), members(model), strict=True)
    )
    seed, slope, mean = mezo.step(model, lambda: model.loss(batch(0)), seed=5, eps=EPS, lr=0.0)
    assert seed == 5
    assert slope == pytest.approx(along, rel=0.05)
    assert mean == pytest.approx(loss.item(), rel=1e-3)


def test_the_loss_goes_down() -> None:
    model = net()
    first = model.loss(batch(0)).item()
    run(model, 300, lr=1e-3)
    assert model.loss(batch(0)).item() < 0.9 * first


def test_frozen_parameters_stay_and_a_mapping_has_its_own_names() -> None:
    model, other = net(), net()
    model.embed.weight.requires_grad_(False)
    before = state(model)
    run(model, 2)
    assert torch.equal(before["embed.weight"], model.embed.weight)
    named = {f"base.{n}": p for n, p in other.named_parameters()}
    mezo.replay(named, [(1, 1.0)], [0.5])
    drawn = direction(1, TensorSpec(name="base.norm.weight", shape=(16,), dtype="float32"))
    np.testing.assert_allclose(other.norm.weight.detach().numpy(), 1 - 0.5 * drawn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fault", ["nan", "raises"])
def test_a_loss_that_fails_leaves_the_weights(dtype: torch.dtype, fault: str) -> None:
    model = net().to(dtype)
    calls = []

    def loss() -> float:
        calls.append(0)
        if fault == "raises" and len(calls) == 2:
            raise KeyError
        return float("nan")

    with pytest.raises((NonFiniteError, KeyError)):
        mezo.step(model, loss, seed=1, eps=EPS, lr=LR)
    assert distance(model, net().to(dtype)) <= (0 if dtype == torch.bfloat16 else 1e-6)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="eps"):
        mezo.step(net(), lambda: 0.0, seed=1, eps=0.0)
    with pytest.raises(ConfigError, match="requires a gradient"):
        mezo.step(net().requires_grad_(False), lambda: 0.0, seed=1)
    with pytest.raises(ConfigError, match="2 rates"):
        mezo.changes([(1, 1.0)], [0.1, 0.2])
