"""Schedule-free AdamW against three plain sequences, and the averages in the model."""

import contextlib
import math

import pytest
import torch

from fedcompress.errors import ConfigError, TrainingError
from fedcompress.optim import build_optimizer, combine_rank_states, parse_optimizer
from fedcompress.optim.base import ShardInfo
from fedcompress.optim.engine.averaging import evaluation_weights, use_averaged_weights
from fedcompress.optim.engine.checkpoint import extract_state
from fedcompress.optim.rules.schedule_free import ScheduleFree
from tests.unit.optim.models import net, state, train

TARGET = torch.linspace(-1, 1, 24, dtype=torch.float64)


def slope(y: torch.Tensor, step: int) -> torch.Tensor:
    """Of a noisy quadratic."""
    noise = torch.randn(24, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return (y - TARGET) * torch.linspace(0.1, 3, 24, dtype=torch.float64) + 0.1 * noise


def twin(rates: list[float], beta: float, decay: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, y and z after the steps of algorithm 1, in float64."""
    x = z = torch.zeros(24, dtype=torch.float64)
    second, total, peak = torch.zeros(24, dtype=torch.float64), 0.0, 0.0
    for t, rate in enumerate(rates, start=1):
        y = (1 - beta) * z + beta * x
        grad = slope(y, t)
        second = 0.999 * second + 0.001 * grad**2
        damped = rate * math.sqrt(1 - 0.999**t)
        z = z - damped * grad / (second.sqrt() + 1e-8) - damped * decay * y
        peak = max(peak, damped)
        total += peak**2
        x = (1 - peak**2 / total) * x + peak**2 / total * z
    return x, (1 - beta) * z + beta * x, z


class Plain(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4, 6))


@pytest.mark.parametrize("beta", [0.9, 0.5, 0.98])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(
    "rates",
    [[0.05] * 60, [0.05 * min(1, t / 20) for t in range(1, 61)], [0.05 * (1 - t / 80) for t in range(60)]],
    ids=["constant", "warm-up", "falling"],
)
def test_it_is_three_plain_sequences(beta: float, decay: float, rates: list[float]) -> None:
    model = Plain()
    optimizer = build_optimizer(model, f"schedule-free(beta={beta})", lr=1.0, weight_decay=decay)
    for t, rate in enumerate(rates, start=1):
        optimizer.param_groups[0]["lr"] = rate
        model.weight.grad = slope(model.weight.detach().double().view(-1), t).float().view(4, 6)
        optimizer.step()
    x, y, z = twin(rates, beta, decay)
    close = {"rtol": 0, "atol": 2e-6}
    torch.testing.assert_close(model.weight.detach().double().view(-1), y, **close)
    torch.testing.assert_close(optimizer.memory["weight"]["z"].double(), z, **close)
    with use_averaged_weights(optimizer):
        torch.testing.assert_close(model.weight.detach().double().view(-1), x, **close)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_it_is_the_published_one(weight_decay: float) -> None:
    """With beta2 = 0, where the published one's other place for the correction of bias makes no difference."""
    published = pytest.importorskip("pytorch_optimizer")
    ours, theirs = Plain(), Plain()
    mine = build_optimizer(ours, "schedule-free(beta2=0.0,eps=0.1)", lr=0.05, weight_decay=weight_decay)
    other = published.ScheduleFreeAdamW(
        theirs.parameters(), lr=0.05, betas=(0.9, 0.0), eps=0.1, weight_decay=weight_decay
    )
    other.train()
    for t in range(1, 40):
        for model, optimizer in ((ours, mine), (theirs, other)):
            model.weight.grad = slope(model.weight.detach().double().view(-1), t).float().view(4, 6)
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=2e-6)
    other.eval()
    with use_averaged_weights(mine):
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=2e-6)


def test_the_model_has_its_own_weights_again_after() -> None:
    model = net()
    optimizer = build_optimizer(model, "schedule-free", lr=1e-2)
    train(model, optimizer, 0, 10)
    before = state(model)
    with contextlib.suppress(KeyError), use_averaged_weights(optimizer):
        assert all(not torch.equal(before[n], p) for n, p in model.named_parameters())
        raise KeyError
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_averages_are_there_after_a_resume_before_a_step() -> None:
    model, other = net(), net(1)
    optimizer, second = (build_optimizer(m, "schedule-free", lr=1e-2) for m in (model, other))
    train(model, optimizer, 0, 10)
    other.load_state_dict(model.state_dict())
    second.load_state_dict(optimizer.state_dict())
    with use_averaged_weights(optimizer), use_averaged_weights(second):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_averages_of_parameters_that_are_not_contiguous() -> None:
    model = net()
    model.layers[0].weight.data = model.layers[0].weight.data.T.contiguous().T
    optimizer = build_optimizer(model, "schedule-free", lr=1e-2)
    train(model, optimizer, 0, 5)
    before = state(model)
    expected = {s.name: x for s, x in evaluation_weights(optimizer)}
    with use_averaged_weights(optimizer):
        assert torch.equal(model.layers[0].weight.reshape(-1), expected["layers.0.weight"])
    assert torch.equal(before["layers.0.weight"], model.layers[0].weight)


def test_a_step_with_a_rate_of_zero_is_none() -> None:
    one, other = net(), net()
    first, second = (build_optimizer(m, "schedule-free", lr=1e-2) for m in (one, other))
    first.param_groups[0]["lr"] = first.param_groups[1]["lr"] = 0.0
    train(one, first, 7, 8)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    for group in first.param_groups:
        group["lr"] = 1e-2
    train(one, first, 0, 5)
    train(other, second, 0, 5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_z_stays_float32_and_is_cut_as_v_is() -> None:
    model = net(width=64)
    optimizer = build_optimizer(model, "schedule-free(state=8bit)", lr=1e-2)
    train(model, optimizer, 0, 3)
    kept = optimizer.memory["layers.0.weight"]
    assert kept["z"].dtype == torch.float32
    assert "codes" in kept["v"]
    entry = combine_rank_states([optimizer.state_dict()])["memory"]["layers.0.weight"]
    piece = extract_state(ScheduleFree(state="8bit"), entry, ShardInfo(name="w", shape=(128, 64), start=100, numel=256))
    assert torch.equal(piece["z"], kept["z"][100:356])
    assert piece["v"].numel() == 256


def test_copies_of_weights_are_refused() -> None:
    model = net()
    optimizer = build_optimizer(model, "schedule-free", lr=1e-2)
    train(model, optimizer, 0, 1)
    for group in optimizer.param_groups:
        group["params"] = [torch.nn.Parameter(p.detach().clone()) for p in group["params"]]
    with pytest.raises(TrainingError, match="evaluation_weights"), use_averaged_weights(optimizer):
        pass
    assert len(evaluation_weights(optimizer)) == len(state(model))


def test_the_average_is_better_than_the_iterate() -> None:
    model = Plain()
    optimizer = build_optimizer(model, "schedule-free", lr=0.05)
    for t in range(1, 400):
        model.weight.grad = (slope(model.weight.detach().double().view(-1), t) * 3).float().view(4, 6)
        optimizer.step()

    def distance() -> float:
        return (model.weight.detach().double().view(-1) - TARGET).norm().item()

    at_y = distance()
    with use_averaged_weights(optimizer):
        assert distance() < at_y < 0.5


def test_eval_puts_the_averages_and_train_takes_them_out() -> None:
    model = net()
    optimizer = build_optimizer(model, "schedule-free", lr=1e-2)
    optimizer.eval()  # before the first step there is no average
    optimizer.train()
    train(model, optimizer, 0, 6)
    trained = state(model)
    expected = {s.name: x.view_as(trained[s.name]).clone() for s, x in evaluation_weights(optimizer)}
    for _ in range(2):
        optimizer.eval()
        assert all(torch.equal(w, expected[n]) for n, w in state(model).items())
    with use_averaged_weights(optimizer):
        assert all(torch.equal(w, expected[n]) for n, w in state(model).items())
    with pytest.raises(TrainingError, match=r"optimizer.train\(\)"):
        train(model, optimizer, 6, 7)
    for _ in range(2):
        optimizer.train()
        for name, weight in state(model).items():
            torch.testing.assert_close(weight, trained[name], rtol=1e-6, atol=1e-7)
    train(model, optimizer, 6, 7)


def test_a_state_that_was_saved_with_averages_goes_on() -> None:
    model, other = net(), net(1)
    optimizer, second = (build_optimizer(m, "schedule-free(state=8bit)", lr=1e-2) for m in (model, other))
    train(model, optimizer, 0, 6)
    optimizer.eval()
    other.load_state_dict(model.state_dict())
    second.load_state_dict(optimizer.state_dict())
    for one, its in ((model, optimizer), (other, second)):
        its.train()
        train(one, its, 6, 9)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_new_round_begins_with_the_weights_that_it_was_given() -> None:
    model, other = net(), net()
    optimizer, second = (build_optimizer(m, "schedule-free", lr=1e-2) for m in (model, other))
    train(model, optimizer, 0, 3)
    optimizer.eval()
    model.load_state_dict(other.state_dict())
    for one, its in ((model, optimizer), (other, second)):
        its.new_round(1)
        train(one, its, 3, 6)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_copies_are_evaluated_without_averages_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    optimizer = build_optimizer(model, "schedule-free", lr=1e-2)
    train(model, optimizer, 0, 1)
    before = state(model)
    for group in optimizer.param_groups:
        group["params"] = [torch.nn.Parameter(p.detach().clone()) for p in group["params"]]
    optimizer.eval()
    optimizer.train()
    assert "without averages" in caplog.text
    assert all(torch.equal(before[n], w) for n, w in state(model).items())


@pytest.mark.parametrize("call", ["adamw", "galore(rank=4)"])
def test_other_rules_have_no_averages(call: str) -> None:
    model = net()
    optimizer = build_optimizer(model, call, lr=1e-2)
    train(model, optimizer, 0, 2)
    before = state(model)
    optimizer.eval()
    assert all(torch.equal(before[n], w) for n, w in state(model).items())
    train(model, optimizer, 2, 3)


@pytest.mark.parametrize("call", ["schedule-free(beta=0)", "schedule-free(beta=1)", "schedule-free(beta2=1)"])
def test_bad_parameters_are_refused(call: str) -> None:
    with pytest.raises(ConfigError, match="beta"):
        parse_optimizer(call)
