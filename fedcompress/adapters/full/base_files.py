"""Reads a base's weights from its safetensors files slice by slice, under the names of the model's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from fedcompress.adapters.folder import STORED_AS, to_float32
from fedcompress.adapters.safetensors_io import METADATA, read_header
from fedcompress.chunks import TensorSlice
from fedcompress.errors import ConfigError, StateError
from fedcompress.types import DTYPES, Array


@dataclass(frozen=True)
class Entry:
    """An entry says where a tensor is stored."""

    file: Path
    offset: int  # bytes from the beginning of the file
    size: int  # bytes
    dtype: str  # safetensors' name, such as ``BF16``
    shape: tuple[int, ...]

    def data(self, start: int = 0, size: int = -1) -> bytes:
        """Read bytes of the tensor.

        Args:
            start: the first byte, counted from the tensor's own first.
            size: how many; all that are left if negative.

        Raises:
            StateError: the file has become shorter.
        """
        expected = self.size - start if size < 0 else size
        with self.file.open("rb") as file:
            file.seek(self.offset + start)
            data = file.read(expected)
        if len(data) != expected:
            raise StateError(f"{self.file}: {len(data)} bytes: must be {expected}")
        return data


class BaseWeights:
    """Holds the headers of the safetensors files in one folder; values stay on disk until they are read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._keys: dict[tuple[str, tuple[int, ...]], str] = {}

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """Read all headers, once; return where tensors are, by their names in the files.

        Raises:
            ConfigError: the folder has no safetensors files.
            StateError: a file does not parse.
        """
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise ConfigError("model.path", self.folder, "must have weights as safetensors: they are read by the piece")
        entries = {}
        for file in files:
            header, data_start = read_header(file)
            header.pop(METADATA, None)
            for name, tensor in header.items():
                start, end = tensor["data_offsets"]
                entries[name] = Entry(file, data_start + start, end - start, tensor["dtype"], tuple(tensor["shape"]))
        return entries

    def find_key(self, name: str, shape: tuple[int, ...]) -> str:
        """Find the name that a parameter has in the files; empty if it is not there, as new heads are not.

        The names differ since a model's class may add up to two parts in front of those in its files, or leave out or
        replace what stands in front there.
        """
        if (name, shape) not in self._keys:
            parts = name.split(".")
            tails = [".".join(parts[i:]) for i in range(len(parts))]
            suffixes = tuple(f".{tail}" for tail in tails[:2])
            longer_keys = [key for key in self.entries if key.endswith(suffixes)]
            candidates = [*tails[:3], *longer_keys]
            fitting = [key for key in candidates if key in self.entries and self.entries[key].shape == shape]
            self._keys[name, shape] = fitting[0] if fitting else ""
        return self._keys[name, shape]

    def read(self, piece: TensorSlice) -> Array:
        """Read a slice of a parameter as float32, of the slice's shape; zeros if the files do not have the parameter.

        Raises:
            ConfigError: the parameter is stored as something else than a float of 2 or 4 bytes.
            StateError: the file has become shorter.
        """
        key = self.find_key(piece.spec.name, piece.whole.shape)
        if not key:
            return np.zeros(piece.spec.shape, np.float32)
        entry = self.entries[key]
        dtype = STORED_AS.get(entry.dtype)
        if dtype is None:
            raise ConfigError(f"model.{key}", entry.dtype, f"must be one of {list(STORED_AS)}: its values are trained")
        width = DTYPES[dtype]
        data = entry.data(piece.at * width, piece.spec.numel * width)
        return to_float32(data, dtype).reshape(piece.spec.shape)
