"""Blocks: how they are cut and numbered, and that ratios stay within 1."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcompress.codecs.base import Support
from fedcompress.codecs.quantizers.blocks import check_block, concatenate, index_blocks, normalize_blocks
from fedcompress.codecs.quantizers.blocks import split_by_support as split
from fedcompress.errors import ConfigError
from fedcompress.numerics import bfloat16

SIZES = st.lists(st.integers(0, 30), max_size=6)


@given(sizes=SIZES, block=st.integers(0, 9))
def test_blocks_are_cut_in_each_vector_by_itself(sizes: list[int], block: int) -> None:
    blocks, index = index_blocks(sizes, block)
    expected = []
    number = -1
    for size in sizes:
        for at in range(size):
            number += at % (block or size) == 0
            expected.append(number)
    assert index.tolist() == expected
    assert blocks == number + 1


@given(sizes=SIZES, block=st.integers(0, 9), seed=st.integers(0, 99))
def test_ratios_are_at_most_one(sizes: list[int], block: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = [generator.standard_normal(n).astype(np.float32) * (n % 3) for n in sizes]
    scales, ratio = normalize_blocks(values, block)
    blocks, index = index_blocks(sizes, block)
    assert scales.shape == (blocks,)
    assert (np.abs(ratio) <= 1).all()
    assert np.allclose(ratio * bfloat16.from_bfloat16(scales)[index], concatenate(values), rtol=1e-6)


@given(sizes=SIZES)
def test_vectors_are_split_as_they_were(sizes: list[int]) -> None:
    values = [np.arange(n, dtype=np.float32) for n in sizes]
    again = split(concatenate(values), [Support((n,)) for n in sizes])
    assert [v.tolist() for v in again] == [v.tolist() for v in values]


def test_a_block_below_zero() -> None:
    check_block("codec.nf4.block", 0)
    with pytest.raises(ConfigError, match=r"codec\.nf4\.block"):
        check_block("codec.nf4.block", -1)
