"""Elementwise rules against peft, where the definitions agree; and where they do not, what each gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fedcompress.merging.base import Block
from fedcompress.merging.rules.dare import draw_mask
from tests.unit.merging.samples import KINDS, merged_tensor, sample

EQUAL, SOME = [1, 1, 1, 1], [1, 2, 3, 2]
# peft breaks equal magnitudes at the threshold by position, so there the threshold is where nothing is equal, or 0
DENSITY = dict.fromkeys(KINDS, 0.25) | {"ternary": 0.75, "half-ternary": 0.5, "constant": 1.0, "two": 0.5, "one": 1.0}


def peft(function: str, values: list[np.ndarray], weights: list[float], *args: object) -> np.ndarray:
    """In float64, so that what differs are not roundings."""
    import torch
    from peft.utils import merge_utils

    tensors = [torch.from_numpy(v.astype(np.float64)) for v in values]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The density 1")
        result: np.ndarray = getattr(merge_utils, function)(tensors, torch.tensor(weights, dtype=torch.float64), *args)
    return np.asarray(result)


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6 * np.abs(theirs).max(initial=0))
    assert theirs.size == 0 or not theirs.any() or ours.any()


@pytest.fixture
def same_masks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, float, int], None]:
    """Makes torch.bernoulli return our masks, site after site."""
    import torch

    def prepare(size: int, density: float, sites: int) -> None:
        block = Block("w", 0, np.zeros((sites, size), np.float32), np.ones(sites) / sites, np.zeros(size, np.float32))
        masks: Iterator[np.ndarray] = iter(draw_mask(block, density, 7))

        def drawn(input: Any, **_: object) -> Any:
            assert float(input.flatten()[0]) == density if size else True
            return torch.from_numpy(next(masks).astype(np.float64))

        monkeypatch.setattr(torch, "bernoulli", drawn)

    return prepare


def part(weights: list[int]) -> list[float]:
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 0.3, -0.5])
def test_task_arithmetic(kind: str, scale: float) -> None:
    """Our weights add up to 1, theirs are factors."""
    values = sample(kind, 4)
    close(
        merged_tensor(f"task-arithmetic(scale={scale})", values, SOME),
        peft("task_arithmetic", values, [scale * w for w in part(SOME)]),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_magnitude_prune(kind: str) -> None:
    values, density = sample(kind, 4), DENSITY[kind]
    ours = merged_tensor(f"magnitude-prune(density={density})", values, SOME)
    close(ours, peft("magnitude_prune", values, part(SOME), density))
    if kind == "normal":
        assert not np.allclose(ours, merged_tensor("mean", values, SOME), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("election", "method"), [("mass", "total"), ("count", "frequency")])
def test_ties(kind: str, election: str, method: str) -> None:
    """With equal weights; on an exact tie theirs is the mean of what is above 0, ours 0."""
    values, density = sample(kind, 4), DENSITY[kind]
    ours = merged_tensor(f"ties(density={density},election={election})", values, EQUAL)
    theirs = peft("ties", values, EQUAL, density, method)
    tied = exact_ties(values, density, election)
    close(np.where(tied, 0, ours), np.where(tied, 0, theirs))
    assert not ours[tied].any()
    assert (theirs[tied] >= 0).all()
    if kind == "half-ternary":
        assert theirs[tied].any(), "no tie in the sample"


def exact_ties(values: list[np.ndarray], density: float, election: str) -> np.ndarray:
    left = []
    for value in values:
        count = int(density * value.size)
        level = np.sort(np.abs(value))[value.size - count] if count else np.inf
        left.append(np.where(np.abs(value) >= level, value, 0).astype(np.float64))
    votes = np.stack(left) if election == "mass" else np.sign(left)
    return np.abs(votes.sum(0)) <= 1e-12 * np.abs(votes).sum(0)


@pytest.mark.parametrize("kind", ["normal", "mixed", "tiny", "two"])
def test_ties_with_weights(kind: str) -> None:
    """Theirs does not elect by weights and divides by a number: given weighted updates, it is a factor away."""
    values, weights, density = sample(kind, 4), np.array(SOME) / sum(SOME), DENSITY[kind]
    weighted = [(w * v.astype(np.float64)) for w, v in zip(weights, values, strict=True)]
    theirs = peft("ties", weighted, EQUAL, density, "total")
    left = np.stack([np.where(np.abs(v) >= np.sort(np.abs(v))[v.size - int(density * v.size)], v, 0) for v in weighted])
    agree = np.sign(left) == np.sign(left.sum(0))
    agree &= left != 0
    number, weight = agree.sum(0), (agree * weights[:, None]).sum(0)
    factor = np.divide(number, weight, out=np.zeros(number.shape), where=number > 0)
    ours = merged_tensor(f"ties(density={density})", values, SOME)
    close(ours, theirs * factor)
    assert not np.allclose(ours, peft("ties", values, list(weights), density, "total"), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("density", [0.3, 0.5])
def test_dare_linear(kind: str, density: float, same_masks: Callable[[int, float, int], None]) -> None:
    values = sample(kind, 4)
    same_masks(values[0].size, density, 4)
    theirs = peft("dare_linear", values, part(SOME), density)
    ours = merged_tensor(f"dare(density={density},seed=7)", values, SOME)
    close(ours, theirs)
    close(merged_tensor(f"darex-q(density={density},q=0.8,seed=7)", values, SOME), theirs * density / 0.8)
    if kind == "normal":
        assert not np.allclose(merged_tensor(f"dare(density={density},seed=8)", values, SOME), theirs, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("election", "method"), [("mass", "total"), ("count", "frequency")])
def test_dare_ties(kind: str, election: str, method: str, same_masks: Callable[[int, float, int], None]) -> None:
    values, density = sample(kind, 4), 0.5
    same_masks(values[0].size, density, 4)
    theirs = peft("dare_ties", values, EQUAL, density, method)
    ours = merged_tensor(f"dare-ties(density={density},election={election},seed=7)", values, EQUAL)
    size = values[0].size
    block = Block("w", 0, np.stack(values), np.ones(4) / 4, np.zeros(size, np.float32))
    left = np.stack(values) * draw_mask(block, density, 7).astype(np.float64)
    votes = left if election == "mass" else np.sign(left)
    tied = np.abs(votes.sum(0)) <= 1e-12 * np.abs(votes).sum(0)
    close(np.where(tied, 0, ours), np.where(tied, 0, theirs))
    assert not ours[tied].any()


@pytest.mark.parametrize("size", [1, 3])
def test_small_tensors_keep_an_entry(size: int) -> None:
    """Theirs keeps ``int(density * n)``, here none."""
    values = [np.arange(1, size + 1, dtype=np.float32)] * 2
    assert not peft("magnitude_prune", values, [0.5, 0.5], 0.2).any()
    assert merged_tensor("magnitude-prune(density=0.2)", values, [1, 1]).tolist() == [0.0] * (size - 1) + [size]
