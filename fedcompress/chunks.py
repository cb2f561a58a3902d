"""Layouts are cut into chunks of bounded size, so that memory is bounded by a chunk and not by the update.

A *chunk* is a list of consecutive tensor slices. A *tensor slice* is a whole tensor, or some of its rows where the
tensor alone would be too large. Both follow from the receiver's own layout.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import EllipsisType

import numpy as np

from fedcompress.errors import ConfigError
from fedcompress.types import Array, Layout, Tensors, TensorSpec

FILE_CHUNK_ENTRIES = 1 << 24  # entries of a chunk of a .fcu file
ROUND_CHUNK_ENTRIES = 1 << 22  # entries of a chunk of a round's message
MAX_CHUNK_ENTRIES = 1 << 26  # entries of the largest chunk that a reader takes
MAX_CHUNK_TENSORS = 10_000  # tensor slices of a chunk


@dataclass(frozen=True, kw_only=True)
class TensorSlice:
    """Names a whole tensor, or some consecutive rows of one.

    Args:
        spec: name of the tensor, and the shape of the slice.
        start: the first row of the slice.
        total: rows of the whole tensor; 0 if the slice is all of it.
    """

    spec: TensorSpec
    start: int = 0
    total: int = 0

    @property
    def whole(self) -> TensorSpec:
        """Return the spec of the tensor that the slice is cut from."""
        return replace(self.spec, shape=(self.total, *self.spec.shape[1:])) if self.total else self.spec

    @property
    def at(self) -> int:
        """Return the number of entries of the tensor before the slice's first one."""
        return self.start * math.prod(self.spec.shape[1:])


def layout_of_slices(slices: list[TensorSlice]) -> Layout:
    """Return the layout of a chunk: one tensor for each slice, of the slice's shape."""
    return Layout(tuple(s.spec for s in slices))


def split_layout(layout: Layout, entries: int = FILE_CHUNK_ENTRIES) -> list[list[TensorSlice]]:
    """Return the chunks of a layout: lists of slices with at most ``entries`` entries; at least one chunk.

    Raises:
        ConfigError: one row of a tensor has more entries than a chunk may have.
    """
    chunks: list[list[TensorSlice]] = [[]]
    room = entries
    for spec in layout.tensors:
        for part in _slice_tensor(spec, entries):
            chunk = chunks[-1]
            if chunk and (part.total or part.spec.numel > room or len(chunk) == MAX_CHUNK_TENSORS):
                chunks.append([])
                room = entries
            chunks[-1].append(part)
            room -= part.spec.numel
    return chunks


def _slice_tensor(spec: TensorSpec, entries: int) -> Iterator[TensorSlice]:
    if spec.numel <= entries:
        yield TensorSlice(spec=spec)
        return
    rows = spec.shape[0]
    width = spec.numel // rows
    if width > MAX_CHUNK_ENTRIES:
        raise ConfigError(f"layout.{spec.name}.shape", spec.shape, f"at most {MAX_CHUNK_ENTRIES} entries in a row")
    step = max(entries // width, 1)
    for start in range(0, rows, step):
        shape = (min(step, rows - start), *spec.shape[1:])
        yield TensorSlice(spec=replace(spec, shape=shape), start=start, total=rows)


def slice_rows(part: TensorSlice) -> slice | EllipsisType:
    """Return the index of a slice in its tensor: a range of rows, or ``...`` for all of it."""
    return slice(part.start, part.start + part.spec.shape[0]) if part.total else ...


def read_slices(tensors: Mapping[str, Array], slices: list[TensorSlice]) -> Tensors:
    """Return the values of a chunk by tensor name, each of its slice's shape.

    A mapping with a method ``read`` (as ``TensorFile`` has) is asked for the slices alone, so that no whole tensor
    comes into memory.
    """
    read = getattr(tensors, "read", None)
    if read is not None:
        return {s.spec.name: read(s) for s in slices}
    return {s.spec.name: tensors[s.spec.name][slice_rows(s)].reshape(s.spec.shape) for s in slices}


def collect_slices(layout: Layout, chunks: Iterable[tuple[list[TensorSlice], Tensors]]) -> Tensors:
    """Join the values of all chunks of a layout to whole float32 tensors in memory."""
    tensors: Tensors = {}
    for slices, values in chunks:
        for part in slices:
            name = part.spec.name
            if part.total:
                whole = tensors.setdefault(name, np.empty(layout.by_name[name].shape, np.float32))
                whole[slice_rows(part)] = values[name]
            else:
                tensors[name] = values[name]
    return tensors
