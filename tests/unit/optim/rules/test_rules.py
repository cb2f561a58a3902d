"""What every optimizer rule keeps, for every row of the table."""

import itertools

import pytest
import torch

from fedcompress.errors import ConfigError, NonFiniteError, StateError, TrainingError
from fedcompress.optim import OPTIMIZERS, ShardInfo, StepContext, build_optimizer, combine_rank_states, parse_optimizer
from fedcompress.optim.base import ELEMENTWISE, MATRIX, OptimizerRule, State
from fedcompress.optim.engine.checkpoint import pack_state, unpack_state
from fedcompress.optim.state.moment_storage import count_bytes
from fedcompress.optim.state.selections import select_blocks
from fedcompress.optim.table import state_bytes
from tests.unit.optim.models import ALL_CALLS, batch, net, state, train

LR = 1e-2
SHAPES = [(24, 16), (16, 24), (16, 16), (12, 40)]


def gradients(shape: tuple[int, ...], steps: int, seed: int = 0) -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=made) for _ in range(steps)]


def run(rule: OptimizerRule, shard: ShardInfo, grads: list[torch.Tensor], weight: torch.Tensor) -> list[torch.Tensor]:
    """Directions of a rule on one shard, with packed states between, and weights that follow."""
    kept, deltas = {}, []
    for step, grad in enumerate(grads, start=1):
        given = grad.clone()
        delta, new = rule.update(given, unpack_state(rule, kept), shard, StepContext(step=step, lr=LR), weight)
        assert torch.equal(given, grad), "the gradient was changed"
        assert delta.shape == grad.shape
        assert delta.isfinite().all()
        kept = pack_state(rule, new, shard, step)
        kept.pop("step")
        weight = weight - LR * delta
        deltas.append(delta.clone())
    return deltas


@pytest.mark.parametrize("call", ALL_CALLS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_names_and_seeds_give_the_same_steps(call: str, shape: tuple[int, int]) -> None:
    rule, shard = parse_optimizer(call), ShardInfo(name="layers.0.weight", shape=shape, layer=0, layers=1)
    size = shape if rule.placement == MATRIX else (shape[0] * shape[1],)
    weight = torch.randn(size, generator=torch.Generator().manual_seed(9))
    first, second = (run(rule, shard, gradients(size, 7), weight) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("call", [c for c in ALL_CALLS if parse_optimizer(c).placement == ELEMENTWISE])
@pytest.mark.parametrize("shape", [(24, 16), (12, 41)])
@pytest.mark.parametrize("cuts", [(0, 100, 384), (0, 7, 200, 201, 384)])
def test_an_elementwise_rule_does_the_same_on_any_parts(call: str, shape: tuple[int, int], cuts: list[int]) -> None:
    total = shape[0] * shape[1]
    cuts = (*cuts[:-1], total)
    rule, grads = parse_optimizer(call), gradients((total,), 7)
    weight = torch.randn(total, generator=torch.Generator().manual_seed(9))
    made = {"name": "layers.0.weight", "shape": shape, "seed": 3, "layer": 0, "layers": 1}
    whole = run(rule, ShardInfo(**made), grads, weight)
    parts = [
        run(rule, ShardInfo(**made, start=a, numel=b - a), [g[a:b] for g in grads], weight[a:b])
        for a, b in itertools.pairwise(cuts)
    ]
    for step, delta in enumerate(whole):
        assert torch.equal(delta, torch.cat([p[step] for p in parts]))


@pytest.mark.parametrize("call", ALL_CALLS)
def test_state_takes_the_bytes_that_the_formula_gives(call: str) -> None:
    rule, shape = parse_optimizer(call), (160, 96)
    shard = ShardInfo(name="layers.0.weight", shape=shape, layer=0, layers=1)
    size = shape if rule.placement == MATRIX else (shape[0] * shape[1],)
    kept: State = {}
    for step, grad in enumerate(gradients(size, 4), start=1):  # id3 takes some steps to its full size
        new = rule.update(grad, unpack_state(rule, kept), shard, StepContext(step=step, lr=LR), grad + 1)[1]
        kept = pack_state(rule, new, shard, step)
    taken = sum(map(count_bytes, kept.values()))
    if "blocks" in call:
        assert taken in (0, 8 * 160 * 96)
    else:
        assert taken == pytest.approx(state_bytes(rule, shape), rel=0.02)


@pytest.mark.parametrize("call", ALL_CALLS)
def test_training_goes_down(call: str) -> None:
    model = net()
    losses = train(model, build_optimizer(model, call, lr=0.3 if call.startswith("sgd") else 3e-3), 0, 40)
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])


@pytest.mark.parametrize("call", ALL_CALLS)
def test_resume_in_the_middle_of_an_interval_equals_the_run_without_a_stop(call: str, tmp_path) -> None:
    through, model = net(), net()
    train(through, build_optimizer(through, call, lr=1e-2), 0, 8)
    first = build_optimizer(model, call, lr=1e-2)
    train(model, first, 0, 4)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = build_optimizer(model, call, lr=5.0)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.param_groups[0]["lr"] == 1e-2
    train(model, second, 4, 8)
    assert all(torch.equal(a, b) for a, b in zip(state(through).values(), state(model).values(), strict=True))


@pytest.mark.parametrize("call", ALL_CALLS)
def test_a_new_round_forgets_and_draws_again(call: str) -> None:
    model = net()
    optimizer = build_optimizer(model, call, lr=1e-3)
    train(model, optimizer, 0, 2)
    optimizer.new_round(1)
    assert optimizer.state_bytes() == 0
    train(model, optimizer, 2, 4)
    if not call.startswith("schedule-free"):
        optimizer.new_round(2, state="keep")
        train(model, optimizer, 4, 6)


@pytest.mark.parametrize("call", ALL_CALLS)
def test_the_rule_runs_on_each_parameter_once_a_step(call: str) -> None:
    model = net()
    optimizer = build_optimizer(model, call, lr=1e-3)
    train(model, optimizer, 0, 3)
    assert optimizer.calls == dict.fromkeys(state(model), 3)


@pytest.mark.parametrize("call", ALL_CALLS)
def test_gradients_that_are_not_finite_change_nothing(call: str) -> None:
    model = net()
    optimizer = build_optimizer(model, call, lr=1e-3)
    train(model, optimizer, 0, 2)
    before = state(model)
    model.loss(batch(2)).backward()
    model.norm.weight.grad[3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"norm\.weight"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), state(model).values(), strict=True))


@pytest.mark.parametrize("call", ALL_CALLS)
def test_frozen_parameters_stay(call: str) -> None:
    model = net()
    model.layers[1].weight.requires_grad_(False)
    model.embed.weight.requires_grad_(False)
    before = state(model)
    train(model, build_optimizer(model, call, lr=1e-3), 0, 12)  # long enough for rules that take one layer at a time
    assert torch.equal(before["layers.1.weight"], model.layers[1].weight)
    assert not torch.equal(before["layers.2.weight"], model.layers[2].weight)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_checkpoint_of_another_rule_is_refused(name: str) -> None:
    model, other = net(), "adamw(beta1=0.5)" if name != "sgd" else "lion"
    from tests.unit.optim.models import CALLS

    optimizer = build_optimizer(model, CALLS[name][0], lr=1e-3)
    train(model, optimizer, 0, 1)
    with pytest.raises(StateError, match="rule"):
        build_optimizer(model, other, lr=1e-3).load_state_dict(optimizer.state_dict())


def test_a_checkpoint_of_another_layout_is_refused() -> None:
    small, wide = net(), net(width=32)
    optimizer = build_optimizer(small, "adamw", lr=1e-3)
    train(small, optimizer, 0, 1)
    with pytest.raises(StateError, match="rule and shape"):
        build_optimizer(wide, "adamw", lr=1e-3).load_state_dict(optimizer.state_dict())
    with pytest.raises(StateError, match="another optimizer"):
        build_optimizer(small, "adamw", lr=1e-3).load_state_dict(torch.optim.AdamW(small.parameters()).state_dict())
    with pytest.raises(StateError, match="format"):
        combine_rank_states([])


def test_sparse_gradients_are_refused() -> None:
    model = net()
    model.embed = torch.nn.Embedding(20, 16, sparse=True)
    optimizer = build_optimizer(model, "adamw", lr=1e-3)
    model.loss(batch(0)).backward()
    with pytest.raises(TrainingError, match="sparse"):
        optimizer.step()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("adamwww", "must be one of"),
        ("adamw(beta3=1)", "key must be one of"),
        ("adamw(beta1=1)", "below 1"),
        ("adamw(state=2bit)", "must be one of"),
        ("frugal(density=0)", "above 0"),
        ("frugal(density=1.5)", "at most 1"),
        ("frugal(projection=diagonals)", "must be one of"),
        ("frugal(update_gap=0)", "above 0"),
        ("galore(rank=0)", "above 0"),
        ("galore(side=full,carry=project)", "keep or reset"),
    ],
)
def test_bad_calls_name_the_field_and_the_rule(call: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build_optimizer(net(), call, lr=1e-3)


@pytest.mark.parametrize("name", [n for n, row in OPTIMIZERS.items() if row.matrices_only])
def test_a_vector_is_refused_by_rules_for_matrices(name: str) -> None:
    rule = OPTIMIZERS[name].config()
    with pytest.raises(ConfigError, match="must be a matrix"):
        rule.check("norm.weight", (64,))


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="requires a gradient"):
        build_optimizer(net().requires_grad_(False), "adamw", lr=1e-3)


def test_a_state_of_another_seed_is_refused() -> None:
    model = net()
    optimizer = build_optimizer(model, "frugal", lr=1e-3, seed=1)
    train(model, optimizer, 0, 1)
    with pytest.raises(StateError, match="seed: 1: must be 2"):
        build_optimizer(model, "frugal", lr=1e-3, seed=2).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("call", [c for c in ALL_CALLS if not c.startswith("schedule")])
def test_resume_in_the_middle_of_a_round_that_kept_its_state(call: str) -> None:
    through, model = net(), net()
    optimizer = build_optimizer(through, call, lr=1e-2)
    first = build_optimizer(model, call, lr=1e-2)
    for built, trained in ((optimizer, through), (first, model)):
        train(trained, built, 0, 4)
        built.new_round(3, state="keep")
        train(trained, built, 4, 6)
    second = build_optimizer(model, call, lr=1e-2)
    second.load_state_dict(first.state_dict())
    train(through, optimizer, 6, 10)
    train(model, second, 6, 10)
    assert all(torch.equal(a, b) for a, b in zip(state(through).values(), state(model).values(), strict=True))


def test_schedule_free_does_not_keep_its_state() -> None:
    with pytest.raises(ConfigError, match="z is of old weights"):
        build_optimizer(net(), "schedule-free", lr=1e-3).new_round(1, state="keep")


@pytest.mark.parametrize("call", ["galore(rank=4)", "frugal(projection=svd)", "fira(rank=4)", "q-galore(rank=4)"])
def test_a_basis_is_not_taken_from_a_gradient_of_zeros(call: str) -> None:
    model = net()
    optimizer = build_optimizer(model, call, lr=1e-3)
    for step in range(2):
        optimizer.zero_grad()
        model.loss(batch(step)).backward()
        if step == 0:
            model.layers[1].weight.grad.zero_()
        optimizer.step()
        assert ("layers.1.weight" in optimizer.memory) == (step == 1)


def test_short_rounds_come_to_every_block() -> None:
    seen = {i: select_blocks(ShardInfo(name="w", shape=(4, 4), count=4), 0.25, i << 40) for i in range(4)}
    assert set().union(*seen.values()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("key", "value"), [("lr", -1.0), ("lr", float("nan")), ("weight_decay", -0.1), ("rest_lr", float("inf"))]
)
def test_rates_are_checked(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match="must be finite and at least 0"):
        build_optimizer(net(), "frugal", **{"lr": 1e-3, key: value})
