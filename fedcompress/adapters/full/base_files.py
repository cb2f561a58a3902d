"""A base's weights in its safetensors files, read by the piece under the names of the model's parameters."""

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
    """Where a tensor is; ``dtype`` is safetensors' name of it."""

    file: Path
    offset: int
    size: int
    dtype: str
    shape: tuple[int, ...]

    def data(self, start: int = 0, size: int = -1) -> bytes:
        """Bytes of it, all or some.

        Raises:
            StateError: the file has become shorter.
        """
        wanted = self.size - start if size < 0 else size
        with self.file.open("rb") as file:
            file.seek(self.offset + start)
            found = file.read(wanted)
        if len(found) != wanted:
            raise StateError(f"{self.file}: {len(found)} bytes: must be {wanted}")
        return found


class BaseWeights:
    """The files of one folder.

    Raises:
        ConfigError: it has none.
        StateError: one does not parse.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._keys: dict[tuple[str, tuple[int, ...]], str] = {}

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """Tensors by their names in the files."""
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise ConfigError("model.path", self.folder, "must have weights as safetensors: they are read by the piece")
        out = {}
        for file in files:
            header, start = read_header(file)
            header.pop(METADATA, None)
            for name, raw in header.items():
                at, end = raw["data_offsets"]
                out[name] = Entry(file, start + at, end - at, raw["dtype"], tuple(raw["shape"]))
        return out

    def key_of(self, name: str, shape: tuple[int, ...]) -> str:
        """The name in the files of a parameter; empty if it is not there, as new heads are not.

        A model's class may add a prefix to the names in its files, or take one away.
        """
        if (name, shape) not in self._keys:
            parts = name.split(".")
            tails = [".".join(parts[i:]) for i in range(len(parts))]
            ends = tuple(f".{tail}" for tail in tails[:2])
            longer = [key for key in self.entries if key.endswith(ends)]
            found = [k for k in (*tails[:3], *longer) if k in self.entries and self.entries[k].shape == shape]
            self._keys[name, shape] = found[0] if found else ""
        return self._keys[name, shape]

    def read(self, piece: TensorSlice) -> Array:
        """Values of a piece of a parameter, float32; zeros if the files do not have it.

        Raises:
            ConfigError: it is not of a float of 2 or 4 bytes.
        """
        key = self.key_of(piece.spec.name, piece.whole.shape)
        if not key:
            return np.zeros(piece.spec.shape, np.float32)
        entry = self.entries[key]
        dtype = STORED_AS.get(entry.dtype)
        if dtype is None:
            raise ConfigError(f"model.{key}", entry.dtype, f"must be one of {list(STORED_AS)}: its values are trained")
        width = DTYPES[dtype]
        return to_float32(entry.data(piece.at * width, piece.spec.numel * width), dtype).reshape(piece.spec.shape)
