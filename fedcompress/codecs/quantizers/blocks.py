"""Holds what block-wise quantizers share: one bfloat16 scale a block, and one symbol stream for all entries.

Blocks are cut in each vector by itself; the last block of a vector may be shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedcompress.codecs.base import Support
from fedcompress.codecs.byte_io import Reader, Writer
from fedcompress.codecs.entropy.symbols import read_symbols, write_symbols
from fedcompress.errors import ConfigError
from fedcompress.numerics import bfloat16
from fedcompress.types import Array


def check_block(field: str, block: int) -> None:
    """Raise ``ConfigError`` unless a block size is 0 or more."""
    if block < 0:
        raise ConfigError(field, block, "must be >= 0 (0: one block a tensor)")


def index_blocks(sizes: Sequence[int], block: int) -> tuple[int, NDArray[np.int64]]:
    """Number the blocks of all vectors together.

    Args:
        sizes: entries of each vector.
        block: entries of a block; 0 makes one block of each vector that is not empty.

    Returns:
        The number of blocks, and the block of each entry, shape (sum of sizes,).
    """
    counts = [-(-size // block) if block else int(size > 0) for size in sizes]
    starts = np.cumsum([0, *counts])
    pieces = [np.zeros(0, np.int64)]
    for start, size in zip(starts, sizes, strict=False):
        within = np.arange(size) // block if block else np.zeros(size, np.int64)
        pieces.append(start + within)
    return int(starts[-1]), np.concatenate(pieces)


def concatenate(values: Sequence[Array]) -> Array:
    """Return all vectors, one after another, as one float32 vector."""
    return np.concatenate([np.zeros(0, np.float32), *values])


def split_by_support(flat: Array, supports: Sequence[Support]) -> list[Array]:
    """Split one vector into the vectors of the supports; inverts ``concatenate``."""
    if not supports:
        return []
    return list(np.split(flat, np.cumsum([s.count for s in supports])[:-1]))


def find_block_maxima(flat: Array, index: NDArray[np.int64], blocks: int) -> Array:
    """Find the largest magnitude of each block.

    Args:
        flat: all entries, float32.
        index: the block of each entry, of the shape of ``flat``.
        blocks: the number of blocks.

    Returns:
        Maxima, float32, shape (blocks,).
    """
    maxima = np.zeros(blocks, np.float32)
    np.maximum.at(maxima, index, np.abs(flat))
    return maxima


def normalize_blocks(
    values: Sequence[Array], block: int, norms: Callable[..., Array] = find_block_maxima
) -> tuple[NDArray[np.uint16], Array]:
    """Divide all entries by the norm of their block.

    Args:
        values: flat float32 vectors.
        block: entries of a block; 0 means one block a vector.
        norms: computes the norm of each block, with the arguments and the result of ``find_block_maxima``.

    Returns:
        The norms rounded up to bfloat16 bits, shape (blocks,); and the ratios, float32, shape (entries,), which are
        0 in blocks whose norm is 0.
    """
    flat = concatenate(values)
    blocks, index = index_blocks([v.size for v in values], block)
    scales = bfloat16.round_up(norms(flat, index, blocks))
    scale = bfloat16.from_bfloat16(scales)[index]
    return scales, np.divide(flat, scale, out=np.zeros_like(flat), where=scale > 0)


def write_blocks(writer: Writer, scales: NDArray[np.uint16], symbols: NDArray[np.int64], alphabet: int) -> None:
    """Append the scales of all blocks and then the symbols of all entries.

    Args:
        writer: receives the bytes.
        scales: bfloat16 bits, shape (blocks,).
        symbols: integers in ``[0, alphabet)``, shape (entries,).
        alphabet: the number of different symbols.
    """
    writer.raw(scales.astype("<u2").tobytes())
    write_symbols(writer, symbols.astype(np.int32), alphabet)


def read_blocks(reader: Reader, sizes: Sequence[int], block: int, alphabet: int) -> tuple[Array, NDArray[np.int32]]:
    """Read what ``write_blocks`` wrote.

    Args:
        reader: stands before the scales.
        sizes: entries of each vector.
        block: entries of a block; 0 means one block a vector.
        alphabet: the number of different symbols.

    Returns:
        The scale of each entry's block, float32, and each entry's symbol, both of shape (entries,).

    Raises:
        PayloadError: the bytes do not decode.
    """
    blocks, index = index_blocks(sizes, block)
    scales = bfloat16.decode_scales(reader.raw(2 * blocks))
    return scales[index], read_symbols(reader, sum(sizes), alphabet)
