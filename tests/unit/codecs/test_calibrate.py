"""Calibrated scales on a linear layer, where the best one is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedcompress.codecs import CodecSpec, calibrate, decode_sections, encode_sections
from fedcompress.errors import ConfigError
from fedcompress.types import Layout, Tensors, TensorSpec

LAYOUT = Layout((TensorSpec(name="w", shape=(16, 400)),))
DELTA = np.random.default_rng(0).standard_normal((16, 400)).astype(np.float32)
INPUTS = np.random.default_rng(1).standard_normal((64, 400)).astype(np.float32)


def change(q: float, seed: int, density: float = 0.1) -> float:
    """Squared change of a layer's output, by DARE with this q."""
    codec = CodecSpec.parse(f"random(density={density},q={q})|none")
    got = decode_sections(codec, LAYOUT, encode_sections(codec, LAYOUT, {"w": DELTA}, seed=seed))["w"]
    return float(np.square(INPUTS @ (got - DELTA).T).mean())


def test_q_by_score_finds_the_top_of_a_hill() -> None:
    assert calibrate.find_q_by_score(lambda q: -((q - 0.437) ** 2), 0.1) == pytest.approx(0.437, abs=0.01)
    assert calibrate.find_q_by_score(lambda q: q, 0.3) == 1.0
    assert calibrate.find_q_by_score(lambda q: -q, 0.3) == 0.3
    asked: list[float] = []
    calibrate.find_q_by_score(lambda q: asked.append(q) or 0.0, 0.25)
    assert all(0.25 <= q <= 1 for q in asked)


def test_output_change_prefers_a_larger_q_than_the_keep_rate() -> None:
    """For independent entries the least squared change is at q = 1: half of DARE's claim is bias against variance."""
    q = calibrate.find_q_by_output(change, 0.1)
    exact = min((0.1, 0.2, 0.4, 0.6, 0.8, 1.0), key=lambda v: np.mean([change(v, s) for s in range(6)]))
    assert q > 0.1
    assert abs(q - exact) <= 0.25
    assert np.mean([change(q, s) for s in range(10, 14)]) < 0.5 * np.mean([change(0.1, s) for s in range(10, 14)])


def test_the_bound_equals_a_slow_twin() -> None:
    inputs = np.abs(INPUTS.mean(0))
    density = 0.1
    drop = 0.9
    eta = 0.5
    gamma = 0.95
    phi = (1 - 2 * drop) / math.log((1 - drop) / drop)
    best = []
    for row in DELTA:
        c = [float(d) * float(x) for d, x in zip(row, inputs, strict=True)]
        first, second = math.fsum(c), math.fsum(v * v for v in c)
        values = {
            q: abs(eta * (1 - density / q) * first + eta**2 * phi * second / (4 * q * q) + math.log(2 / (1 - gamma)))
            for q in np.arange(density, 1.0, 1e-3)
        }
        best.append(min(values, key=lambda q: values[q]))
    got = calibrate.find_q_by_bound(DELTA, inputs, density, eta=eta, gamma=gamma)
    assert density <= got <= 1
    assert got <= np.mean(best) + 1e-9  # the common grid may end before the last rows are at their least


@pytest.mark.parametrize("density", [0.5, 0.01, 0.99])
def test_the_bound_is_finite_everywhere(density: float) -> None:
    assert density <= calibrate.find_q_by_bound(DELTA, INPUTS.mean(0), density) <= 1


def test_learned_q_goes_downhill_and_stays_in_range() -> None:
    goals = {"a": 0.6, "b": 0.05, "c": 2.0}
    found = calibrate.learn_q(lambda q: {n: 2 * (q[n] - g) for n, g in goals.items()}, list(goals), 0.1)
    assert found["a"] == pytest.approx(0.6, abs=0.05)
    assert found["b"] == pytest.approx(0.1)
    assert found["c"] >= 0.95


def test_ternary_scales_are_calibrated_by_what_a_layer_puts_out() -> None:
    """Inputs that lie along the update's own direction want a larger scale than least squares."""
    layout = Layout((TensorSpec(name="w", shape=(16, 400)),))
    left, right = np.random.default_rng(2).standard_normal((2, 400))
    values = {"w": np.outer(left[:16], right).astype(np.float32)}
    inputs = np.outer(np.ones(8), right)

    def distance(decoded: Tensors) -> float:
        return float(np.square(inputs @ (decoded["w"] - values["w"]).T).mean())

    spec = CodecSpec.parse("topk(density=0.05)|ternary")
    found = calibrate.calibrate_ternary(spec, layout, values, distance)
    gain = found.clauses[0].code.quantize.gain
    assert gain > 1.3
    plain, better = (distance(decode_sections(s, layout, encode_sections(s, layout, values))) for s in (spec, found))
    assert better < 0.7 * plain
    assert CodecSpec.parse(str(found)) == found


def test_nothing_to_calibrate() -> None:
    with pytest.raises(ConfigError, match="ternary"):
        calibrate.calibrate_ternary(CodecSpec.parse("int8"), LAYOUT, {"w": DELTA}, lambda _: 0.0)
    with pytest.raises(ConfigError, match="density"):
        calibrate.find_q_by_score(lambda q: q, 0.0)
