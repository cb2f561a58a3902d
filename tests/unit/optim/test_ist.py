"""IST: scores move the right way, draws follow them, and skipped layers stay."""

import contextlib
import math

import pytest
import torch

from fedcompress.errors import ConfigError, NonFiniteError
from fedcompress.optim import build_optimizer
from fedcompress.optim.ist import Importance, draw_candidates, draw_layers, suppress_layers, update_scores
from tests.unit.optim.models import net, parse_layer, state, train


def fresh(layers: int = 8, **changes: float) -> Importance:
    return Importance(scores=(0.0,) * layers, **changes)


def test_layers_whose_suppression_harms_become_important() -> None:
    sets = [{0, 1}, {0, 2}, {1, 3}]
    after = update_scores(fresh(4), sets, [0.5, 0.5, 3.0])
    mean = (2 * math.exp(-0.5) + math.exp(-3)) / 3
    good, bad = (10 * 0.25 * (math.exp(-loss) - mean) for loss in (0.5, 3.0))
    assert after.scores == pytest.approx((2 * good, good + bad, good, bad))
    assert after.scores[0] > 0 > after.scores[3]


def test_equal_losses_teach_nothing() -> None:
    assert update_scores(fresh(4), [{0}, {1}], [1.0, 1.0]) == fresh(4)
    assert update_scores(fresh(4), [], []) == fresh(4)


def test_important_layers_are_trained_more_and_suppressed_less() -> None:
    state_ = Importance(scores=(3.0, 3.0, 3.0, 3.0, -3.0, -3.0, -3.0, -3.0))
    trained = [draw_layers(state_, step, 0) for step in range(300)]
    assert {len(t) for t in trained} == {2}
    assert sum(len(t & {4, 5, 6, 7}) for t in trained) > 520  # of 600
    tried = [s for step in range(10, 1010, 10) for s in draw_candidates(state_, step, 0)]
    assert {len(s) for s in tried} == {4}
    assert sum(len(s & {0, 1, 2, 3}) for s in tried) > 960  # of 1200


def test_draws_depend_on_step_and_seed_alone() -> None:
    assert [draw_layers(fresh(), s, 0) for s in range(20)] == [draw_layers(fresh(), s, 0) for s in range(20)]
    assert [draw_layers(fresh(), s, 0) for s in range(20)] != [draw_layers(fresh(), s, 1) for s in range(20)]
    assert len({frozenset(draw_layers(fresh(), s, 0)) for s in range(20)}) > 5
    assert len(draw_candidates(fresh(), 10, 0)) == 3
    assert draw_candidates(fresh(), 0, 0) == draw_candidates(fresh(), 11, 0) == []


def test_it_finds_the_layer_that_matters() -> None:
    """The loss is 2 more where layer 5 is suppressed."""
    scores = fresh()
    for step in range(400):
        sets = draw_candidates(scores, step, 0)
        scores = update_scores(scores, sets, [0.5 + 2 * (5 in s) for s in sets]) if sets else scores
    assert min(range(8), key=lambda i: scores.scores[i]) == 5


@pytest.mark.parametrize("call", ["adamw", "frugal(update_gap=3)", "galore(rank=4,update_gap=3)"])
def test_layers_that_are_not_active_are_skipped(call: str) -> None:
    model = net()
    optimizer = build_optimizer(model, call, lr=1e-2, weight_decay=0.1)
    train(model, optimizer, 0, 2)
    before = state(model)
    optimizer.active_layers = {1}
    train(model, optimizer, 2, 4)
    for name, value in state(model).items():
        skipped = parse_layer(name) in (0, 2)
        assert torch.equal(value, before[name]) == skipped
        assert optimizer.memory[name]["step"] == (2 if skipped else 4)
        assert optimizer.calls[name] == (2 if skipped else 4)
    optimizer.active_layers = None
    train(model, optimizer, 4, 5)
    assert optimizer.memory["layers.0.weight"]["step"] == 3


def test_a_layer_that_is_skipped_after_a_resume_keeps_its_state() -> None:
    model = net()
    first = build_optimizer(model, "adamw", lr=1e-2)
    train(model, first, 0, 2)
    second = build_optimizer(model, "adamw", lr=1e-2)
    second.load_state_dict(first.state_dict())
    second.active_layers = {0}
    train(model, second, 2, 3)
    second.active_layers = None
    train(model, second, 3, 4)
    assert second.memory["layers.0.weight"]["step"] == 4
    assert second.memory["layers.1.weight"]["step"] == 3


class Adapter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scaling = {"default": 2.0, "other": 0.3}


def adapted() -> torch.nn.Module:
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([torch.nn.ModuleDict({"q": Adapter(), "v": Adapter()}) for _ in range(3)])
    return model


def test_suppression_is_undone() -> None:
    model = adapted()
    with contextlib.suppress(KeyError), suppress_layers(model, {1}):
        assert [layer["q"].scaling["default"] for layer in model.layers] == [2.0, 0.5, 2.0]
        assert model.layers[1]["v"].scaling["other"] == pytest.approx(0.075)
        raise KeyError
    assert all(m.scaling == {"default": 2.0, "other": 0.3} for m in model.modules() if isinstance(m, Adapter))
    with pytest.raises(ConfigError, match="adapters"), suppress_layers(net(), {1}):
        pass


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="layers"):
        Importance(scores=())
    for name in ("trained", "suppressed", "candidates", "update_gap", "lr"):
        with pytest.raises(ConfigError, match=f"ist.{name}"):
            fresh(**{name: 0})
    with pytest.raises(NonFiniteError):
        update_scores(fresh(), [{0}], [float("nan")])
