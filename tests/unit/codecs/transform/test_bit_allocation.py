"""Bit allocation: estimates of one step, the plans that follow from them, and the step for a budget."""

from __future__ import annotations

import numpy as np
import pytest

from fedcompress.codecs.transform.bit_allocation import (
    BitAllocator,
    TensorSpectrum,
    _Pool,
    compute_spectrum,
    find_classes,
)
from fedcompress.codecs.transform.codebook import LOG_STEP, LOWEST
from fedcompress.codecs.transform.trellis import MAX_CLASS


def spectra() -> list[TensorSpectrum]:
    """One strong direction; a few strong rows; zeros; nothing; and a vector."""
    generator = np.random.default_rng(0)
    rank_one = np.outer(generator.standard_normal(8), generator.standard_normal(200))
    few_rows = np.zeros((8, 200))
    few_rows[[2, 5]] = 3 * generator.standard_normal((2, 200))
    values = [rank_one, few_rows, np.zeros((4, 30)), np.zeros((0, 3)), generator.standard_normal(50)]
    return [compute_spectrum(v.astype(np.float32), 1.0) for v in values]


def test_classes_are_the_nearest() -> None:
    deviations = 2.0 ** (LOWEST + np.arange(MAX_CLASS + 1) / LOG_STEP)
    assert find_classes(deviations).tolist() == list(range(MAX_CLASS + 1))
    assert find_classes(np.array([0.0, 1e-9, 1e300])).tolist() == [-1, -1, MAX_CLASS]


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("step", [0.01, 0.3, 5.0])
def test_an_estimate_has_a_number_for_each_vector_and_tensor(rotated: bool, step: float) -> None:
    pool = _Pool.collect(spectra(), 4, rotated)
    estimate = pool.estimate(step, 5)
    assert estimate.classes.shape == estimate.is_sent.shape == pool.energies.shape
    assert estimate.bits_spent.shape == estimate.gain.shape == (5,)
    assert not estimate.is_sent[pool.energies == 0].any()
    assert (estimate.bits_spent >= 0).all()


def test_a_plan_takes_the_better_of_rotated_and_unrotated() -> None:
    direction, rows, zeros, nothing, vector = BitAllocator(spectra(), 4).plan(0.3)
    assert direction.rotated
    assert direction.indices.tolist() == [0]
    assert not rows.rotated
    assert rows.indices.tolist() == [2, 5]
    assert zeros.indices.size == nothing.indices.size == 0
    assert vector.indices.tolist() == [0]
    assert all(p.classes.shape == p.indices.shape for p in (direction, rows, zeros, nothing, vector))


def test_the_step_fits_the_bits() -> None:
    allocator = BitAllocator(spectra(), 4)
    bits = [allocator.estimate_bits(step) for step in (0.01, 0.1, 1.0, 10.0, 1e6)]
    assert bits == sorted(bits, reverse=True)
    assert bits[-1] == 5, "one bit a tensor says that nothing is sent"
    for budget in (400.0, 2000.0, 8000.0):
        step = allocator.find_step(budget)
        assert allocator.estimate_bits(step) <= budget < allocator.estimate_bits(0.9 * step) + 1
