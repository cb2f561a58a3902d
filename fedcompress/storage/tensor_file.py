"""States and updates on disk, read by the piece: little-endian float32 without gaps, in the order of their layout."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from fedcompress.chunks import ROUND_CHUNK_ENTRIES, TensorSlice, read_slices, split_layout
from fedcompress.errors import AccessError, StateError
from fedcompress.storage.file_access import is_passing
from fedcompress.types import Array, Layout, Tensors

MAGIC = b"FCS1"
_ZEROS = 1 << 20


class TensorFile(Mapping[str, Array]):
    """Tensors of a file, of which each access reads no more than it returns.

    Args:
        path: the file.
        layout: what it holds.
        offset: bytes before the first value.

    Raises:
        StateError: the file is missing, or has another size.
    """

    def __init__(self, path: Path, layout: Layout, offset: int = 0) -> None:
        self.path, self.layout = path, layout
        self._offset = offset
        self._starts: dict[str, int] = {}
        at = 0
        for spec in layout.tensors:
            self._starts[spec.name] = at
            at += spec.numel
        try:
            size = path.stat().st_size - offset
        except OSError as error:
            if is_passing(error):
                raise AccessError(path, error) from error
            raise StateError(f"state: {path}: cannot be read: {error.strerror}") from error
        if size != 4 * at:
            raise StateError(f"state: {path}: {size} bytes: the layout needs {4 * at}")

    def __getitem__(self, name: str) -> Array:
        return self.read(TensorSlice(spec=self.layout.by_name[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    def offset_of(self, piece: TensorSlice) -> int:
        """Where a piece begins in the file, bytes."""
        return self._offset + 4 * (self._starts[piece.spec.name] + piece.at)

    def read(self, piece: TensorSlice) -> Array:
        """Values of a piece; raises as ``flat``."""
        return self.flat(piece.spec.name, piece.at, piece.at + piece.spec.numel).reshape(piece.spec.shape)

    def flat(self, name: str, start: int, stop: int) -> Array:
        """Entries of a tensor.

        Raises:
            StateError: the file is gone, or has become shorter.
        """
        at = self._offset + 4 * (self._starts[name] + start)
        try:
            found = np.fromfile(self.path, "<f4", count=stop - start, offset=at)
        except OSError as error:
            if is_passing(error):
                raise AccessError(self.path, error) from error
            raise StateError(f"state: {self.path}: cannot be read: {error.strerror}") from error
        if found.size != stop - start:
            raise StateError(f"state: {self.path}: {name}: {found.size} of {stop - start} entries")
        return found.astype(np.float32, copy=False)


class ZeroTensors(Mapping[str, Array]):
    """A layout's zeros, of which each access makes no more than it returns."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def __getitem__(self, name: str) -> Array:
        return np.zeros(self.layout.by_name[name].shape, np.float32)

    def __iter__(self) -> Iterator[str]:
        return (t.name for t in self.layout.tensors)

    def __len__(self) -> int:
        return len(self.layout.tensors)

    def read(self, piece: TensorSlice) -> Array:
        """Values of a piece."""
        return np.zeros(piece.spec.shape, np.float32)


def open_tensor_file(path: Path, layout: Layout) -> TensorFile | ZeroTensors:
    """Tensors of a file that begins with ``MAGIC``; if that is all it has, they are zeros.

    Raises:
        StateError: it is not such a file, or does not fit the layout.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC) + 1)
    except OSError as error:
        if is_passing(error):
            raise AccessError(path, error) from error
        raise StateError(f"state: {path}: cannot be read: {error.strerror}") from error
    if not start.startswith(MAGIC):
        raise StateError(f"state: {path}: is not a stream")
    return ZeroTensors(layout) if start == MAGIC else TensorFile(path, layout, len(MAGIC))


class StateHasher:
    """``state_digest``, of values that come part by part."""

    def __init__(self, layout: Layout) -> None:
        self._sha = hashlib.sha256(b"fedcompress-state-v1" + layout.digest)

    def update(self, values: Tensors) -> None:
        """The next values, in the order of the layout."""
        for value in values.values():
            self._sha.update(np.ascontiguousarray(value + np.float32(0), dtype="<f4").data)

    def digest(self) -> bytes:
        """32 bytes."""
        return self._sha.digest()


def iterate_chunks(layout: Layout, tensors: Mapping[str, Array]) -> Iterator[tuple[list[TensorSlice], Tensors]]:
    """Values part by part."""
    for pieces in split_layout(layout, ROUND_CHUNK_ENTRIES):
        yield pieces, read_slices(tensors, pieces)


def streamed_state_digest(layout: Layout, tensors: Mapping[str, Array]) -> bytes:
    """As ``state_digest``, without a whole tensor in memory."""
    digest = StateHasher(layout)
    for _, values in iterate_chunks(layout, tensors):
        digest.update(values)
    return digest.digest()


def as_bytes(value: Array) -> memoryview:
    """Bytes of a tensor."""
    return np.ascontiguousarray(value, "<f4").reshape(-1).data.cast("B")


def iterate_bytes(values: Mapping[str, Array]) -> Iterator[memoryview]:
    """Bytes of values, in order."""
    return map(as_bytes, values.values())


def write_tensor_file(path: Path, parts: Iterable[Tensors]) -> None:
    """Write a file that ``TensorFile`` reads; it has its name only once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        for values in parts:
            file.writelines(iterate_bytes(values))
    part.replace(path)


def serialize_chunks(parts: Iterable[Tensors]) -> Iterator[bytes | memoryview]:
    """Bytes of a file that ``open_tensor_file`` reads; of nothing but zeros only the beginning."""
    yield MAGIC
    zeros = 0  # bytes that wait; below 0: some value was not zero
    for values in parts:
        for value in values.values():
            if not value.any() and zeros >= 0:
                zeros += value.nbytes
                continue
            for at in range(0, max(zeros, 0), _ZEROS):
                yield bytes(min(_ZEROS, zeros - at))
            zeros = -1
            yield as_bytes(value)
