"""Reads and writes safetensors files slice by slice, so that a file need not fit into memory."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fedcompress.adapters import group_of
from fedcompress.adapters.folder import CONFIG_FILE, STORED_AS, WEIGHTS_FILE, from_float32, to_float32
from fedcompress.chunks import TensorSlice
from fedcompress.errors import ConfigError, StateError
from fedcompress.types import DTYPES, Array, Layout, Tensors, TensorSpec

PEFT = "peft"  # format of a PEFT folder
SAFETENSORS = "safetensors"  # format of a single file
METADATA = "__metadata__"  # the only name in a header that is no tensor
SUFFIX = ".safetensors"
_CODES = {dtype: code for code, dtype in STORED_AS.items()}


@dataclass(frozen=True, kw_only=True)
class TensorSource:
    """A source is a PEFT folder or a safetensors file of which nothing but the header is in memory."""

    path: Path
    format: str  # ``PEFT`` or ``SAFETENSORS``
    layout: Layout  # sorted by name
    metadata: Mapping[str, str]
    config: Mapping[str, Any] | None  # the JSON of adapter_config.json; None for a single file
    weights: Path  # the safetensors file
    offsets: Mapping[str, int] = field(repr=False)  # bytes from the beginning of the file, by name

    def read(self, piece: TensorSlice) -> Array:
        """Read a slice as float32; its dtype in the file counts, and not that in ``piece``.

        Raises:
            StateError: the file has become shorter.
        """
        dtype = self.layout.by_name[piece.spec.name].dtype
        width = DTYPES[dtype]
        size = piece.spec.numel * width
        with self.weights.open("rb") as file:
            file.seek(self.offsets[piece.spec.name] + piece.at * width)
            data = file.read(size)
        if len(data) != size:
            raise StateError(f"{self.weights}: {piece.spec.name}: {len(data)} bytes: must be {size}")
        return to_float32(data, dtype).reshape(piece.spec.shape)

    def values(self, pieces: list[TensorSlice]) -> Tensors:
        """Read the slices of a part, by the names of their tensors."""
        return {p.spec.name: self.read(p) for p in pieces}

    def check_fits(self, layout: Layout, field: str) -> None:
        """Raise ``ConfigError`` unless names and shapes are those of ``layout``; dtypes may differ.

        Args:
            layout: what the source must have.
            field: what the error calls the source.

        Raises:
            ConfigError: names the first tensor that differs.
        """
        own_shapes = {t.name: t.shape for t in self.layout.tensors}
        needed_shapes = {t.name: t.shape for t in layout.tensors}
        for name in sorted(own_shapes.keys() | needed_shapes.keys()):
            own = own_shapes.get(name, "absent")
            needed = needed_shapes.get(name, "absent")
            if own != needed:
                rule = f"must have the same names and shapes: {name} is {own}, not {needed}"
                raise ConfigError(field, self.path, rule)


def open_source(path: Path, field: str = "PATH") -> TensorSource:
    """Open a PEFT folder or a safetensors file and read its header.

    In a single file, tensors have groups as in a PEFT folder if any of them is named like an adapter's; otherwise
    all are in the group ``other``.

    Args:
        path: of the folder or the file.
        field: what errors call the path.

    Raises:
        ConfigError: a file is missing, or a dtype is not a float of 2 or 4 bytes.
        StateError: a file does not parse.
    """
    is_folder = path.is_dir()
    weights = path / WEIGHTS_FILE if is_folder else path
    if not weights.is_file() or (is_folder and not (path / CONFIG_FILE).is_file()):
        rule = f"must be a PEFT folder, with {CONFIG_FILE} and {WEIGHTS_FILE}, or a {SUFFIX} file"
        raise ConfigError(field, path, rule)
    header, data_start = read_header(weights)
    metadata = header.pop(METADATA, {})
    is_adapter = is_folder or any(group_of(name) != "head" for name in header)
    specs = []
    offsets = {}
    for name in sorted(header):
        entry = header[name]
        dtype = STORED_AS.get(entry["dtype"])
        if dtype is None:
            raise ConfigError(f"{field}.{name}.dtype", entry["dtype"], f"one of {list(STORED_AS)}")
        group = group_of(name) if is_adapter else "other"
        specs.append(TensorSpec(name=name, shape=tuple(entry["shape"]), dtype=dtype, group=group))
        offsets[name] = data_start + entry["data_offsets"][0]
    return TensorSource(
        path=path,
        format=PEFT if is_folder else SAFETENSORS,
        layout=Layout(tuple(specs)),
        metadata=metadata,
        config=_read_config(path / CONFIG_FILE) if is_folder else None,
        weights=weights,
        offsets=offsets,
    )


def read_header(weights: Path) -> tuple[dict[str, Any], int]:
    """Read the header of a safetensors file, which the safetensors library checks.

    Returns:
        The JSON: dtype, shape and offsets by name; and the byte at which the data begins, from which offsets count.

    Raises:
        StateError: the file does not parse.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="numpy"), weights.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(size))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise StateError(f"{weights}: does not parse: {error}") from error
    return header, 8 + size


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StateError(f"{path}: does not parse: {error}") from error
    if not isinstance(config, dict):
        raise StateError(f"{path}: a {type(config).__name__}: must be a JSON object")
    return config


class Sink:
    """Writes a safetensors file slice by slice; the file appears under its name when all of it is written.

    Entering the context raises ``ConfigError`` if the disk has too little room. If the block raises, nothing is left.

    Args:
        path: the file to write; its folder is made where it is missing.
        layout: of the tensors; their order in the file is that of the safetensors library.
        metadata: texts for the header.
    """

    def __init__(self, path: Path, layout: Layout, metadata: Mapping[str, str]) -> None:
        self._path = path
        self._temporary = path.with_name(path.name + ".part")
        self._offsets: dict[str, int] = {}
        header: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
        offset = 0
        # Wide dtypes first, then by name: the order of the library, which keeps all values aligned.
        for spec in sorted(layout.tensors, key=lambda t: (-DTYPES[t.dtype], t.name)):
            size = spec.numel * DTYPES[spec.dtype]
            header[spec.name] = {
                "dtype": _CODES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [offset, offset + size],
            }
            self._offsets[spec.name] = offset
            offset += size
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        self._header = text + b" " * (-len(text) % 8)
        self._data_start = 8 + len(self._header)
        self._size = self._data_start + offset

    def __enter__(self) -> Sink:
        self._is_new_folder = not self._path.parent.exists()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._path.parent).free
        if self._size > free:
            raise ConfigError("-o", self._path, f"needs {self._size:,} bytes on disk, {free:,} are free")
        self._file = self._temporary.open("wb")
        self._file.write(struct.pack("<Q", len(self._header)) + self._header)
        self._file.truncate(self._size)
        return self

    def write(self, piece: TensorSlice, values: Array) -> None:
        """Write a slice: finite float32 values of its shape, rounded to its dtype."""
        offset = self._offsets[piece.spec.name] + piece.at * DTYPES[piece.spec.dtype]
        self._file.seek(self._data_start + offset)
        self._file.write(from_float32(np.ascontiguousarray(values), piece.spec.dtype).data)

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._file.close()
        if kind is None:
            os.replace(self._temporary, self._path)
        else:
            self._temporary.unlink(missing_ok=True)
            if self._is_new_folder and not any(self._path.parent.iterdir()):
                self._path.parent.rmdir()
