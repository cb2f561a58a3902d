"""Fisher merging against a loop over entries, its closed forms, and inputs that it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedcompress.errors import ConfigError
from fedcompress.merging import InMemoryUpdates, UpdateFiles
from fedcompress.merging.data_driven import fisher
from fedcompress.types import Layout, Tensors, TensorSpec, zeros
from tests.support import equal, lora_layout, normal

LAYOUT = lora_layout(modules=2)
WEIGHTS = [1.0, 2.0, 5.0]
UPDATES = [normal(LAYOUT, s, 0.1) for s in (1, 2, 3)]


def squares(seed: int, scale: float = 1.0) -> Tensors:
    """A Fisher: squared gradients, some of which are 0."""
    return {n: np.where(v > 0.5, 0, v * v).astype(np.float32) for n, v in normal(LAYOUT, seed, scale).items()}


FISHERS = [squares(11), squares(12, 30.0), squares(13, 1e-3)]


def merged(fishers: list[Tensors], updates: list[Tensors] = UPDATES, **options: float) -> Tensors:
    return fisher(
        InMemoryUpdates(LAYOUT, updates), InMemoryUpdates(LAYOUT, fishers), WEIGHTS[: len(updates)], **options
    )


def slow(fishers: list[Tensors], floor: float, normalize: bool) -> dict[str, list[float]]:
    """Entry by entry, in Python's floats."""
    scales = []
    for own in fishers:
        entries = [float(x) for v in own.values() for x in v.ravel()]
        mean = (sum(x * x for x in entries) / len(entries)) ** 0.5
        scales.append(1 / mean if normalize and mean else 1.0)
    out: dict[str, list[float]] = {}
    for name in UPDATES[0]:
        out[name] = []
        for place in range(UPDATES[0][name].size):
            above = below = 0.0
            for site in range(len(fishers)):
                f = max(float(fishers[site][name].ravel()[place]) * scales[site], floor)
                above += WEIGHTS[site] * f * float(UPDATES[site][name].ravel()[place])
                below += WEIGHTS[site] * f
            out[name].append(above / below)
    return out


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("floor", [1e-6, 0.1])
def test_equals_the_loop(normalize: bool, floor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcompress.merging.updates.block_size", lambda sites: 7)
    found = merged(FISHERS, floor=floor, normalize=normalize)
    for name, values in slow(FISHERS, floor, normalize).items():
        assert found[name].dtype == np.float32
        assert np.allclose(found[name].ravel(), values, rtol=1e-6, atol=1e-8), name


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e-30, 1e30])
def test_equal_fishers_give_the_weighted_mean(scale: float) -> None:
    """All zeros too, and when sites' Fishers differ by a factor alone they are equal once normalized."""
    equal_fishers = [{n: v * np.float32(scale) for n, v in FISHERS[0].items()}] * 3
    factors = [{n: v * np.float32(scale * k) for n, v in FISHERS[0].items()} for k in (1, 3, 0.1)]
    for name, value in merged(equal_fishers).items():
        mean = sum(w * u[name].astype(float) for w, u in zip(WEIGHTS, UPDATES, strict=True)) / 8
        assert np.allclose(value, mean, atol=1e-7), name
        assert np.allclose(merged(factors)[name], mean, atol=1e-6), name
    if scale == 1:
        assert not np.allclose(merged(factors, normalize=False)["m0.lora_A.weight"], mean_of("m0.lora_A.weight"))


def mean_of(name: str) -> np.ndarray:
    return sum(w * u[name].astype(float) for w, u in zip(WEIGHTS, UPDATES, strict=True)) / 8


@pytest.mark.parametrize("fishers", [[FISHERS[0]], [zeros(LAYOUT)], [{n: v * 1e-38 for n, v in FISHERS[0].items()}]])
def test_one_update_returns_itself(fishers: list[Tensors]) -> None:
    assert equal(merged(fishers, UPDATES[:1]), UPDATES[0])


def test_a_site_that_alone_knows_an_entry_decides_it() -> None:
    """And one huge Fisher wins where it is not normalized, without overflow."""
    one = zeros(LAYOUT) | {"head.bias": np.array([1, 0, 0], np.float32)}
    other = zeros(LAYOUT) | {"head.bias": np.array([0, 3e38, 0], np.float32)}
    found = merged([one, other], UPDATES[:2], normalize=False)["head.bias"]
    own, theirs = (u["head.bias"] for u in UPDATES[:2])
    assert np.allclose(found[:2], [own[0], theirs[1]], atol=1e-5)
    assert np.allclose(found[2], (own[2] + 2 * theirs[2]) / 3)


def test_files_merge_like_memory(tmp_path: Path) -> None:
    spools = [UpdateFiles(tmp_path / kind, LAYOUT, ["a", "b", "c"]) for kind in ("updates", "fishers")]
    for spool, tensors in zip(spools, (UPDATES, FISHERS), strict=True):
        for name, one in zip("abc", tensors, strict=True):
            spool.add(name, one)
    assert equal(fisher(*spools, WEIGHTS), merged(FISHERS))


class Raw:
    """Updates that nobody has checked."""

    layout, count = LAYOUT, 1

    def __init__(self, value: float) -> None:
        self.value = value

    def read(self, site: int, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return np.full(LAYOUT.by_name[name].numel, self.value, np.float32)[start:stop]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_fishers_that_are_none(value: float) -> None:
    with pytest.raises(ConfigError, match=r"fishers\.0\.m0\.lora_A\.weight: .*finite numbers >= 0"):
        fisher(InMemoryUpdates(LAYOUT, UPDATES[:1]), Raw(value), [1.0])


def test_bad_inputs() -> None:
    held, other = InMemoryUpdates(LAYOUT, UPDATES), Layout((TensorSpec(name="x", shape=(2,)),))
    with pytest.raises(ConfigError, match="fishers: 1 tensors: must have the layout"):
        fisher(held, InMemoryUpdates(other, [zeros(other)] * 3), WEIGHTS)
    with pytest.raises(ConfigError, match="fishers: 2: must be 3"):
        fisher(held, InMemoryUpdates(LAYOUT, FISHERS[:2]), WEIGHTS)
    for floor in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="floor"):
            fisher(held, InMemoryUpdates(LAYOUT, FISHERS), WEIGHTS, floor=floor)
    with pytest.raises(ConfigError, match="weights"):
        fisher(held, InMemoryUpdates(LAYOUT, FISHERS), [1.0, float("nan"), 1.0])
