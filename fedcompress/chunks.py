"""Layouts cut into parts of bounded size, so that memory is bounded by a part."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedcompress.errors import ConfigError
from fedcompress.types import Array, Layout, Tensors, TensorSpec

FILE_CHUNK_ENTRIES = 1 << 24  # entries of a part of a file
ROUND_CHUNK_ENTRIES = 1 << 22  # entries of a part of a message of a round
MAX_CHUNK_ENTRIES = 1 << 26  # entries that a reader allows
MAX_CHUNK_TENSORS = 10_000  # of a part


@dataclass(frozen=True, kw_only=True)
class TensorSlice:
    """A tensor, or some rows of one; ``spec`` has the name of the tensor and the shape of the piece."""

    spec: TensorSpec
    start: int = 0
    total: int = 0  # rows of the whole tensor; 0 if this is all of it

    @property
    def whole(self) -> TensorSpec:
        """Spec of the tensor that this is cut from."""
        return replace(self.spec, shape=(self.total, *self.spec.shape[1:])) if self.total else self.spec

    @property
    def at(self) -> int:
        """Entries of the tensor before the first one of this piece."""
        return self.start * math.prod(self.spec.shape[1:])


def layout_of_slices(pieces: list[TensorSlice]) -> Layout:
    """Layout of a part."""
    return Layout(tuple(p.spec for p in pieces))


def split_layout(layout: Layout, entries: int = FILE_CHUNK_ENTRIES) -> list[list[TensorSlice]]:
    """Consecutive parts of at most so many entries; at least one part.

    Raises:
        ConfigError: one row of a tensor has more entries than a part may have.
    """
    parts: list[list[TensorSlice]] = [[]]
    room = entries
    for spec in layout.tensors:
        for piece in _pieces(spec, entries):
            if parts[-1] and (piece.total or piece.spec.numel > room or len(parts[-1]) == MAX_CHUNK_TENSORS):
                parts.append([])
                room = entries
            parts[-1].append(piece)
            room -= piece.spec.numel
    return parts


def _pieces(spec: TensorSpec, entries: int) -> Iterator[TensorSlice]:
    if spec.numel <= entries:
        yield TensorSlice(spec=spec)
        return
    rows, width = spec.shape[0], spec.numel // spec.shape[0]
    if width > MAX_CHUNK_ENTRIES:
        raise ConfigError(f"layout.{spec.name}.shape", spec.shape, f"at most {MAX_CHUNK_ENTRIES} entries in a row")
    step = max(entries // width, 1)
    for start in range(0, rows, step):
        shape = (min(step, rows - start), *spec.shape[1:])
        yield TensorSlice(spec=replace(spec, shape=shape), start=start, total=rows)


def read_slices(tensors: Mapping[str, Array], pieces: list[TensorSlice]) -> Tensors:
    """Values of a part; of tensors that read themselves by the piece, no more than those."""
    read = getattr(tensors, "read", None)
    if read is not None:
        return {p.spec.name: read(p) for p in pieces}
    return {p.spec.name: tensors[p.spec.name][slice_rows(p)].reshape(p.spec.shape) for p in pieces}


def slice_rows(piece: TensorSlice) -> Any:
    """Where a piece is in its tensor."""
    return slice(piece.start, piece.start + piece.spec.shape[0]) if piece.total else ...
