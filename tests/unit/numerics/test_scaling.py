"""Scaling by powers of two, and saturation at the ends of float32."""

from __future__ import annotations

import numpy as np
import pytest

from fedcompress.numerics.scaling import choose_exponent, saturate

TOP = np.finfo(np.float32).max


def test_what_is_too_large_becomes_the_largest_number() -> None:
    values = np.array([np.inf, -np.inf, 3e38, 1.0, 0.0], np.float32)
    assert saturate(values).tolist() == [TOP, -TOP, np.float32(3e38), 1.0, 0.0]
    assert saturate(values, 2)[:4].tolist() == [TOP, -TOP, TOP, 4.0]
    assert np.isnan(saturate(np.array([np.nan], np.float32))).all()


@pytest.mark.parametrize("largest", [1e-12, 1.0, 1e12, 0.0])
def test_safe_magnitudes_are_left_alone(largest: float) -> None:
    assert choose_exponent([np.array([largest, 0])]) == 0


@pytest.mark.parametrize("largest", [1e-45, 1e-38, 1e-13, 1.1e12, 3e38])
def test_other_magnitudes_are_brought_near_1(largest: float) -> None:
    value = np.array([0.0, -largest], np.float32)
    exponent = choose_exponent([np.zeros(3, np.float32), value])
    assert -128 <= exponent <= 127
    assert largest < 1e-38 or 0.5 <= np.abs(saturate(value, -exponent)).max() <= 2
    assert (saturate(saturate(value, -exponent), exponent) == value).all()


def test_nothing_has_no_exponent() -> None:
    assert choose_exponent([]) == choose_exponent([np.zeros((0, 3), np.float32)]) == 0
