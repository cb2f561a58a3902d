"""Reads and writes states and updates on disk: little-endian float32 without gaps, in the order of their layout.

A *stream* is such a file that begins with ``MAGIC``; one that has nothing else stands for zeros.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from fedcompress.chunks import ROUND_CHUNK_ENTRIES, TensorSlice, read_slices, split_layout
from fedcompress.errors import AccessError, StateError
from fedcompress.storage.file_access import is_passing
from fedcompress.types import Array, Layout, Tensors

MAGIC = b"FCS1"  # the first bytes of a stream
_ZERO_BLOCK = 1 << 20  # bytes of zeros that are written at a time


class TensorFile(Mapping[str, Array]):
    """Maps names to the tensors of a file; each access reads no more than it returns.

    Args:
        path: the file.
        layout: what it holds.
        offset: bytes before the first value.

    Raises:
        AccessError: the file cannot be opened now.
        StateError: the file is missing, or has another size.
    """

    def __init__(self, path: Path, layout: Layout, offset: int = 0) -> None:
        self.path = path
        self.layout = layout
        self._offset = offset
        self._starts: dict[str, int] = {}  # entries before each tensor
        numel = 0
        for spec in layout.tensors:
            self._starts[spec.name] = numel
            numel += spec.numel
        try:
            size = path.stat().st_size - offset
        except OSError as error:
            raise _unreadable(path, error) from error
        if size != 4 * numel:
            raise StateError(f"state: {path}: {size} bytes: the layout needs {4 * numel}")

    def __getitem__(self, name: str) -> Array:
        return self.read(TensorSlice(spec=self.layout.by_name[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    def offset_of(self, part: TensorSlice) -> int:
        """Return where a slice begins in the file, bytes."""
        return self._offset + 4 * (self._starts[part.spec.name] + part.at)

    def read(self, part: TensorSlice) -> Array:
        """Read a slice, float32 of its shape; raises as ``flat``."""
        return self.flat(part.spec.name, part.at, part.at + part.spec.numel).reshape(part.spec.shape)

    def flat(self, name: str, start: int, stop: int) -> Array:
        """Read entries of a tensor.

        Args:
            name: the tensor.
            start: the first entry, in row-major order.
            stop: the entry after the last one.

        Returns:
            float32, shape (stop - start,).

        Raises:
            AccessError: the file cannot be opened now.
            StateError: the file is gone, or has become shorter.
        """
        offset = self._offset + 4 * (self._starts[name] + start)
        try:
            values = np.fromfile(self.path, "<f4", count=stop - start, offset=offset)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if values.size != stop - start:
            raise StateError(f"state: {self.path}: {name}: {values.size} of {stop - start} entries")
        return values.astype(np.float32, copy=False)


class ZeroTensors(Mapping[str, Array]):
    """Maps the names of a layout to zeros; each access makes no more than it returns."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def __getitem__(self, name: str) -> Array:
        return np.zeros(self.layout.by_name[name].shape, np.float32)

    def __iter__(self) -> Iterator[str]:
        return (t.name for t in self.layout.tensors)

    def __len__(self) -> int:
        return len(self.layout.tensors)

    def read(self, part: TensorSlice) -> Array:
        """Return the zeros of a slice, float32 of its shape."""
        return np.zeros(part.spec.shape, np.float32)


def open_tensor_file(path: Path, layout: Layout) -> TensorFile | ZeroTensors:
    """Open a stream; one that has nothing but ``MAGIC`` stands for zeros.

    Raises:
        AccessError: the file cannot be opened now.
        StateError: it is no stream, or does not fit the layout.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC) + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not start.startswith(MAGIC):
        raise StateError(f"state: {path}: is not a stream")
    return ZeroTensors(layout) if start == MAGIC else TensorFile(path, layout, len(MAGIC))


def _unreadable(path: Path, error: OSError) -> AccessError | StateError:
    """Return what to raise: a file that cannot be opened for the moment is not a damaged one."""
    if is_passing(error):
        return AccessError(path, error)
    return StateError(f"state: {path}: cannot be read: {error.strerror}")


class StateHasher:
    """Computes ``state_digest`` of values that come chunk by chunk."""

    def __init__(self, layout: Layout) -> None:
        self._sha = hashlib.sha256(b"fedcompress-state-v1" + layout.digest)

    def update(self, values: Tensors) -> None:
        """Add the next values, in the order of the layout."""
        for value in values.values():
            self._sha.update(np.ascontiguousarray(value + np.float32(0), dtype="<f4").data)

    def digest(self) -> bytes:
        """Return the digest of all values so far, 32 bytes."""
        return self._sha.digest()


def iterate_chunks(layout: Layout, tensors: Mapping[str, Array]) -> Iterator[tuple[list[TensorSlice], Tensors]]:
    """Yield the slices of each chunk and their values."""
    for slices in split_layout(layout, ROUND_CHUNK_ENTRIES):
        yield slices, read_slices(tensors, slices)


def streamed_state_digest(layout: Layout, tensors: Mapping[str, Array]) -> bytes:
    """Compute ``state_digest`` with no more than a chunk in memory."""
    hasher = StateHasher(layout)
    for _, values in iterate_chunks(layout, tensors):
        hasher.update(values)
    return hasher.digest()


def as_bytes(value: Array) -> memoryview:
    """Return the little-endian float32 bytes of a tensor, without a copy where it has them already."""
    return np.ascontiguousarray(value, "<f4").reshape(-1).data.cast("B")


def iterate_bytes(values: Mapping[str, Array]) -> Iterator[memoryview]:
    """Yield the bytes of each tensor, in order."""
    return map(as_bytes, values.values())


def write_tensor_file(path: Path, chunks: Iterable[Tensors]) -> None:
    """Write a file that ``TensorFile`` reads; it has its name only once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        for values in chunks:
            file.writelines(iterate_bytes(values))
    part.replace(path)


class StreamSerializer:
    """Turns values that come chunk by chunk into the bytes of a stream behind ``MAGIC``.

    Zeros are held back until a value is not zero, so that a stream of nothing but zeros is ``MAGIC`` alone.
    """

    def __init__(self) -> None:
        self._held_back = 0  # bytes of zeros; below 0 once a value was not zero

    def add(self, values: Tensors) -> Iterator[bytes | memoryview]:
        """Yield the bytes that follow, of the values of the next chunk."""
        for value in values.values():
            if not value.any() and self._held_back >= 0:
                self._held_back += value.nbytes
                continue
            for start in range(0, max(self._held_back, 0), _ZERO_BLOCK):
                yield bytes(min(_ZERO_BLOCK, self._held_back - start))
            self._held_back = -1
            yield as_bytes(value)


def serialize_chunks(chunks: Iterable[Tensors]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a stream that ``open_tensor_file`` reads."""
    yield MAGIC
    serializer = StreamSerializer()
    for values in chunks:
        yield from serializer.add(values)
