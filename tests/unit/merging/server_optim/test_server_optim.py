"""Server optimizers against loops, Flower and torch; their state on the disk."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedcompress.errors import ConfigError, NonFiniteError, StateError
from fedcompress.merging import SERVER_OPTIMIZERS, parse_server_optimizer
from fedcompress.merging.server_optim import ServerOptimizerState
from fedcompress.types import Layout, Tensors, TensorSpec
from tests.support import equal, lora_layout, normal

LAYOUT = lora_layout(modules=1)
ONE = Layout((TensorSpec(name="x", shape=(4, 3)),))
ROUNDS = 6


def path(call: str, steps: list[Tensors], layout: Layout) -> list[Tensors]:
    """The published state after each round, from 0, in float64."""
    optimizer, out = parse_server_optimizer(call), []
    state, place = optimizer.init(layout), {t.name: np.zeros(t.shape) for t in layout.tensors}
    for step in steps:
        change, state = optimizer.update(step, state)
        place = {n: place[n] + change[n] for n in place}
        out.append(place)
    return out


def steps(layout: Layout = ONE) -> list[Tensors]:
    return [normal(layout, seed, 0.1 / (1 + seed)) for seed in range(ROUNDS)]


# Loops over numbers.


def twin_of(second: Callable[[float, float], float], beta1: float) -> Callable[[list[float]], list[float]]:
    def run(numbers: list[float], lr: float = 0.01, tau: float = 1e-3) -> list[float]:
        m, v, x, out = 0.0, tau * tau, 0.0, []
        for number in numbers:
            m, v = beta1 * m + (1 - beta1) * number, second(v, number * number)
            x += lr * m / (math.sqrt(v) + tau)
            out.append(x)
        return out

    return run


def momentum_twin(numbers: list[float], ahead: bool, lr: float) -> list[float]:
    m, x, out = 0.0, 0.0, []
    for number in numbers:
        m = 0.9 * m + number
        x += lr * (number + 0.9 * m if ahead else m)
        out.append(x)
    return out


TWINS: dict[str, Callable[[list[float]], list[float]]] = {
    "adagrad": twin_of(lambda v, square: v + square, 0.0),
    "adam": twin_of(lambda v, square: 0.99 * v + 0.01 * square, 0.9),
    "momentum": lambda numbers: momentum_twin(numbers, False, 1.0),
    "nesterov": lambda numbers: momentum_twin(numbers, True, 0.7),
    "sgd": lambda numbers: list(np.cumsum(numbers)),
    "yogi": twin_of(lambda v, square: v - 0.01 * square * math.copysign(1, v - square), 0.9),
}


@pytest.mark.parametrize("name", SERVER_OPTIMIZERS)
def test_loops(name: str) -> None:
    found = path(name, steps(LAYOUT), LAYOUT)
    for spec in LAYOUT.tensors:
        flat = np.stack([step[spec.name].reshape(-1) for step in steps(LAYOUT)])
        for place in range(0, spec.numel, 7):
            seen = [state[spec.name].reshape(-1)[place] for state in found]
            assert np.allclose(seen, TWINS[name](flat[:, place].tolist()), atol=1e-6), (spec.name, place)


# Flower and torch.


def flowers_path(strategy: Any, etas: list[float] | None = None) -> list[np.ndarray]:
    """The state after each round of a strategy of Flower, with one site that sends the new state."""
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays

    place, out = np.zeros((4, 3)), []
    for round_, step in enumerate(steps(), 1):
        if etas is not None:
            strategy.eta = etas[round_ - 1]
        sent = ndarrays_to_parameters([place + step["x"]])
        reply = FitRes(status=Status(Code.OK, ""), parameters=sent, num_examples=1, metrics={})
        merged, _ = strategy.aggregate_fit(round_, [(None, reply)], [])
        place = parameters_to_ndarrays(merged)[0]
        out.append(place)
    return out


def start() -> Any:
    from flwr.common import ndarrays_to_parameters

    return ndarrays_to_parameters([np.zeros((4, 3))])


@pytest.mark.parametrize("name", ["adagrad", "adam", "yogi"])
def test_flower_agrees(name: str) -> None:
    """With the start of v that the algorithm asks for, and without the correction that Flower's adam adds."""
    from flwr.server.strategy import FedAdagrad, FedAdam, FedYogi

    betas = {} if name == "adagrad" else {"beta_1": 0.9, "beta_2": 0.99}
    make = {"adagrad": FedAdagrad, "adam": FedAdam, "yogi": FedYogi}[name]
    strategy = make(initial_parameters=start(), eta=0.01, tau=1e-3, **betas)
    strategy.v_t = [np.full((4, 3), 1e-6)]
    undone = [0.01 * (1 - 0.9 ** (t + 1)) / math.sqrt(1 - 0.99 ** (t + 1)) for t in range(1, ROUNDS + 1)]
    found = flowers_path(strategy, undone if name == "adam" else None)
    for mine, theirs in zip(path(name, steps(), ONE), found, strict=True):
        assert np.allclose(mine["x"], theirs, atol=1e-6)


@pytest.mark.parametrize(("momentum", "lr"), [(0.9, 1.0), (0.5, 0.3), (0.0, 0.7)])
def test_flowers_momentum_agrees(momentum: float, lr: float) -> None:
    from flwr.server.strategy import FedAvgM

    strategy = FedAvgM(initial_parameters=start(), server_learning_rate=lr, server_momentum=momentum)
    found = flowers_path(strategy)
    for mine, theirs in zip(path(f"momentum(lr={lr},momentum={momentum})", steps(), ONE), found, strict=True):
        assert np.allclose(mine["x"], theirs, atol=1e-6)


def test_torch_agrees_on_nesterov() -> None:
    import torch

    value = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([value], lr=0.7, momentum=0.9, nesterov=True)
    for step, mine in zip(steps(), path("nesterov", steps(), ONE), strict=True):
        value.grad = -torch.from_numpy(step["x"].astype(np.float64))
        optimizer.step()
        assert np.allclose(mine["x"], value.detach().numpy(), atol=1e-6)


# Laws.


@pytest.mark.parametrize("name", SERVER_OPTIMIZERS)
def test_pure_and_resumed_from_bytes(name: str) -> None:
    """The same steps with the state through bytes after every round end at the same bits."""
    optimizer, step = parse_server_optimizer(name), normal(LAYOUT, 5, 0.1)
    straight = stored = optimizer.init(LAYOUT)
    for _ in range(4):
        before = straight.to_bytes()
        one, following = optimizer.update(step, straight)
        assert straight.to_bytes() == before
        two, stored = optimizer.update(step, ServerOptimizerState.from_bytes(stored.to_bytes(), LAYOUT))
        straight = following
        assert equal(one, two)
        assert stored.to_bytes() == straight.to_bytes()
        LAYOUT.check(one, what="step")
        for tensors in straight.slots.values():
            LAYOUT.check(tensors, what="state")
    assert len(straight.slots) == SERVER_OPTIMIZERS[name].slots
    assert straight.counters == ({"steps": 4} if straight.slots else {})


@pytest.mark.parametrize("name", SERVER_OPTIMIZERS)
def test_a_step_of_zero_from_the_start_changes_nothing(name: str) -> None:
    change, _ = parse_server_optimizer(name).update(
        {"x": np.zeros((4, 3), np.float32)}, parse_server_optimizer(name).init(ONE)
    )
    assert (change["x"] == 0).all()


def test_the_default_returns_the_bits_of_the_step() -> None:
    step = normal(LAYOUT, 1)
    change, _ = parse_server_optimizer("sgd").update(step, parse_server_optimizer("sgd").init(LAYOUT))
    assert equal(change, step)


@pytest.mark.parametrize("name", [n for n, row in SERVER_OPTIMIZERS.items() if row.slots == 2])
def test_a_state_that_overflows_is_not_kept(name: str) -> None:
    step = {"x": np.full((4, 3), 3e38, np.float32)}
    _, state = parse_server_optimizer(name).update(step, parse_server_optimizer(name).init(ONE))
    with pytest.raises(NonFiniteError, match=rf"server-optimizer: {name}: v: x"):
        state.to_bytes()


def test_bytes_that_are_no_state() -> None:
    data = parse_server_optimizer("adam").init(ONE).to_bytes()
    for bad in (b"", b"{}\n", b"[]\n", data[:-1], data + b"x", b"\xff" + data):
        with pytest.raises(StateError, match="server-optimizer"):
            ServerOptimizerState.from_bytes(bad, ONE)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("adamw", "server-optimizer: adamw: must be one of"),
        ("adam(lr=-1)", r"server-optimizer\.adam\.lr: -1.0: must be at least 0"),
        ("adam(tau=0)", "tau: 0.0: must be above 0"),
        ("yogi(beta1=1)", "beta1: 1.0: must be from 0 to below 1"),
        ("yogi(beta2=-0.1)", "beta2"),
        ("adagrad(beta2=0.9)", "key must be one of"),
        ("momentum(momentum=1)", "from 0 to below 1"),
        ("nesterov(lr=nan)", "must be a number"),
        ("sgd(lr=-1)", "at least 0"),
    ],
)
def test_bad_calls(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_server_optimizer(text)
