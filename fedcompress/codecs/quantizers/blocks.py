"""What block-wise quantizers share: one bfloat16 scale a block, one symbol stream for all."""

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
    """Raise ``ConfigError`` unless a block size is one."""
    if block < 0:
        raise ConfigError(field, block, "must be >= 0 (0: one block a tensor)")


def block_index(sizes: Sequence[int], block: int) -> tuple[int, NDArray[np.int64]]:
    """Number of blocks of all vectors together, and the block of each entry."""
    counts = [-(-size // block) if block else int(size > 0) for size in sizes]
    starts = np.cumsum([0, *counts])
    pieces = [
        start + (np.arange(size) // block if block else np.zeros(size, np.int64))
        for start, size in zip(starts, sizes, strict=False)
    ]
    return int(starts[-1]), np.concatenate([np.zeros(0, np.int64), *pieces])


def flatten(values: Sequence[Array]) -> Array:
    """All vectors, one after another."""
    return np.concatenate([np.zeros(0, np.float32), *values])


def split(flat: Array, places: Sequence[Support]) -> list[Array]:
    """The vectors of places, from one."""
    return list(np.split(flat, np.cumsum([p.count for p in places])[:-1])) if places else []


def largest_by_block(flat: Array, index: NDArray[np.int64], blocks: int) -> Array:
    """Largest magnitude of each block."""
    top = np.zeros(blocks, np.float32)
    np.maximum.at(top, index, np.abs(flat))
    return top


def ratios(
    values: Sequence[Array], block: int, norms: Callable[..., Array] = largest_by_block
) -> tuple[NDArray[np.uint16], Array]:
    """Norms of all blocks, rounded up to bfloat16, and entries over the norm of their block; 0 where that is 0."""
    flat = flatten(values)
    blocks, index = block_index([v.size for v in values], block)
    scales = bfloat16.round_up(norms(flat, index, blocks))
    scale = bfloat16.from_bfloat16(scales)[index]
    return scales, np.divide(flat, scale, out=np.zeros_like(flat), where=scale > 0)


def write_blocks(writer: Writer, scales: NDArray[np.uint16], symbols: NDArray[np.int64], alphabet: int) -> None:
    """Append bfloat16 scales, then symbols."""
    writer.raw(scales.astype("<u2").tobytes())
    write_symbols(writer, symbols.astype(np.int32), alphabet)


def read_blocks(reader: Reader, sizes: Sequence[int], block: int, alphabet: int) -> tuple[Array, NDArray[np.int32]]:
    """The scale of each entry, and its symbol."""
    blocks, index = block_index(sizes, block)
    scales = bfloat16.scales_from(reader.raw(2 * blocks))
    return scales[index], read_symbols(reader, sum(sizes), alphabet)
