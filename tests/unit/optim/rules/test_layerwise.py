"""BAdam and LISA: the right layers move, and others keep no state."""

import itertools

import pytest
import torch

from fedcompress.errors import ConfigError
from fedcompress.optim import ShardInfo, StepContext, build_optimizer, parse_optimizer
from fedcompress.optim.base import EPOCH_STRIDE
from fedcompress.optim.rules.layerwise import find_active_layer, sample_layers
from fedcompress.optim.state.moment_storage import count_bytes
from tests.unit.optim.models import net, parse_layer, state, train


def shard(layers: int, layer: int = 0, seed: int = 0) -> ShardInfo:
    return ShardInfo(name=f"layers.{layer}.weight", shape=(4, 4), layer=layer, layers=layers, seed=seed)


def moved_layers(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[int]:
    return {parse_layer(name) for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
def test_each_pass_visits_each_layer_once(order: str) -> None:
    passes = [[find_active_layer(shard(5), 5 * p + i, order) for i in range(5)] for p in range(4)]
    assert all(sorted(visited) == [0, 1, 2, 3, 4] for visited in passes)
    match order:
        case "ascending":
            assert passes == [[0, 1, 2, 3, 4]] * 4
        case "descending":
            assert passes == [[4, 3, 2, 1, 0]] * 4
        case _:
            assert len(set(map(tuple, passes))) > 1
            assert [find_active_layer(shard(5, 3), i, order) for i in range(5)] == passes[0], "parameters differ"
            assert [find_active_layer(shard(5, seed=1), i, order) for i in range(20)] != [*itertools.chain(*passes)]


@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
def test_rounds_of_one_interval_visit_all_layers(order: str) -> None:
    assert {find_active_layer(shard(8), epoch * EPOCH_STRIDE, order) for epoch in range(8)} == set(range(8))


@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
@pytest.mark.parametrize("kept", ["reset", "keep"])
@pytest.mark.parametrize("intervals", [1, 2])
def test_rounds_of_a_run_train_all_layers(order: str, kept: str, intervals: int) -> None:
    """Where steps are counted on, too: 3 layers and 2 intervals, whose end is one short of a pass."""
    model, seen = net(), []
    optimizer = build_optimizer(model, f"badam(update_gap=2,order={order})", lr=1e-2)
    for number in range(3):
        optimizer.new_round(number, state=kept)
        for _ in range(intervals):
            before = state(model)
            train(model, optimizer, 0, 2)
            seen.append(moved_layers(before, state(model)))
    assert {len(layers) for layers in seen} == {1}
    assert set().union(*seen) == {0, 1, 2}
    assert set().union(*seen[::intervals]) == {0, 1, 2}, "rounds begin with the same layers"


def test_lisa_draws_so_many_layers_uniformly() -> None:
    drawn = [sample_layers(shard(6), i, 2) for i in range(600)]
    assert {len(d) for d in drawn} == {2}
    counts = [sum(layer in d for d in drawn) for layer in range(6)]
    assert all(160 < count < 240 for count in counts)  # 200 expected, deviation 12
    assert sample_layers(shard(6), 0, 9) == set(range(6))


def test_badam_moves_and_keeps_one_layer_and_drops_all_at_a_switch() -> None:
    model = net()
    optimizer = build_optimizer(model, "badam(update_gap=3,order=ascending)", lr=1e-2, weight_decay=0.1)
    for interval in range(7):
        for step in range(3):
            before = state(model)
            train(model, optimizer, 3 * interval + step, 3 * interval + step + 1)
            assert moved_layers(before, state(model)) == {interval % 3}
            for name, kept in optimizer.memory.items():
                is_active = parse_layer(name) == interval % 3
                assert ("m" in kept) == is_active
                assert kept.get("age", 0) == (step + 1 if is_active else 0)
    assert optimizer.state_bytes() == sum(
        8 * p.numel() for name, p in model.named_parameters() if parse_layer(name) == interval % 3
    )


def test_badam_trains_others_on_request_without_forgetting() -> None:
    model = net()
    optimizer = build_optimizer(model, "badam(update_gap=2,others=trained)", lr=1e-2)
    before = state(model)
    train(model, optimizer, 0, 7)
    assert optimizer.memory["lm_head.weight"]["age"] == 7
    assert not torch.equal(before["embed.weight"], model.embed.weight)


def test_lisa_frees_the_state_of_layers_that_are_left() -> None:
    model = net()
    optimizer = build_optimizer(model, "lisa(layers=1,update_gap=2)", lr=1e-2, weight_decay=0.1, seed=1)
    seen, stayed = set(), 0
    last: set[int] = set()
    for interval in range(12):
        active = sample_layers(shard(3, seed=1), interval, 1)
        before = state(model)
        train(model, optimizer, 2 * interval, 2 * interval + 2)
        assert moved_layers(before, state(model)) == active | {-1}
        for name, kept in optimizer.memory.items():
            assert (count_bytes(kept.get("m", {})) > 0) == (parse_layer(name) in active | {-1})
        if active == last:
            stayed += 1
            assert optimizer.memory[f"layers.{min(active)}.weight"]["age"] > 2
        else:
            assert optimizer.memory[f"layers.{min(active)}.weight"]["age"] == 2
        assert optimizer.memory["norm.weight"]["age"] == 2 * interval + 2
        seen |= active
        last = active
    assert seen == {0, 1, 2}
    assert stayed


def test_an_active_layer_does_what_adamw_does() -> None:
    models = [net(), net()]
    for model, call in zip(models, ["lisa(layers=3)", "adamw"], strict=True):
        train(model, build_optimizer(model, call, lr=1e-2, weight_decay=0.1), 0, 10)
    for one, other in zip(*(state(m).values() for m in models), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


@pytest.mark.parametrize("call", ["badam", "lisa"])
def test_a_model_without_layers_is_refused(call: str) -> None:
    shard = ShardInfo(name="w", shape=(4,))
    with pytest.raises(ConfigError, match="number its layers"):
        parse_optimizer(call).update(torch.ones(4), {}, shard, StepContext(), torch.ones(4))


@pytest.mark.parametrize(
    "call",
    ["badam(order=sideways)", "badam(others=some)", "badam(update_gap=0)", "lisa(layers=0)", "lisa(eps=0)"],
)
def test_bad_parameters_are_refused(call: str) -> None:
    with pytest.raises(ConfigError, match=call.partition("(")[2].partition("=")[0]):
        parse_optimizer(call)
