"""The steps of peft's merge_utils, one by one, and its ways to combine adapters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft.utils import merge_utils

from fedcompress.merging import merge_arrays, parse_rule
from fedcompress.merging.ties_steps import disjoint_mean, elect_sign, sum_by_sign, trim

VALUES = np.random.default_rng(1).standard_normal((4, 6, 10)).astype(np.float32)
STACK = torch.from_numpy(VALUES)


def flat(values: torch.Tensor) -> np.ndarray:
    return values.numpy().reshape(len(values), -1)


@pytest.mark.parametrize("density", [0.1, 0.35, 0.8])
def test_prune_is_trim(density: float) -> None:
    theirs = np.stack([merge_utils.prune(t, density, "magnitude").numpy().ravel() for t in STACK])
    rows = VALUES.reshape(4, -1)
    count = int(density * 60)
    low = np.sort(np.abs(rows), axis=1)[:, 60 - count]
    assert (trim(rows, low) == theirs).all()
    assert (np.count_nonzero(theirs, axis=1) == count).all()


@pytest.mark.parametrize(("election", "method"), [("mass", "total"), ("count", "frequency")])
def test_the_majority_sign(election: str, method: str) -> None:
    """Where there is no tie."""
    sums = sum_by_sign(VALUES.reshape(4, -1), np.ones(4) / 4)
    sign = elect_sign(sums, election)
    mask = flat(merge_utils.calculate_majority_sign_mask(STACK, method).float())
    votes = np.sign(VALUES).reshape(4, -1).sum(0)
    clear = np.ones(60, bool) if election == "mass" else votes != 0
    assert ((np.sign(VALUES.reshape(4, -1)) == sign)[:, clear] == mask.astype(bool)[:, clear]).all()
    theirs = merge_utils.disjoint_merge(STACK, merge_utils.calculate_majority_sign_mask(STACK, method)).numpy().ravel()
    np.testing.assert_allclose(disjoint_mean(sums, sign)[clear], theirs[clear], rtol=1e-5)


@pytest.mark.parametrize("weights", [[1.0, 1, 1, 1], [0.5, 0.25, 0.125, 0.125], [3.0, 1, 2, 2]])
def test_task_arithmetic_and_pruning(weights: list[float]) -> None:
    """Their weights are factors, ours are divided by their sum."""
    factors = torch.tensor(weights)
    for call, theirs in (
        ("task-arithmetic", merge_utils.task_arithmetic(list(STACK), factors)),
        ("magnitude-prune(density=0.5)", merge_utils.magnitude_prune(list(STACK), factors, 0.5)),
    ):
        ours = merge_arrays(parse_rule(call), list(VALUES), weights)
        np.testing.assert_allclose(ours * sum(weights), theirs.numpy(), rtol=1e-5, atol=1e-6)


def test_negative_weights_of_adapters() -> None:
    """A weight of -1 takes away what a weight of 1 gives, by PEFT's task arithmetic and by our sum of states."""
    from fedcompress.types import combine

    factors = [1.0, -0.5, 0.25, -1.0]
    theirs = merge_utils.task_arithmetic(list(STACK), torch.tensor(factors)).numpy()
    ours = combine([{"w": v} for v in VALUES], factors)["w"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
