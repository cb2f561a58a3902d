"""Reading and writing safetensors files by the row, and cutting them into parts."""

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

PEFT, SAFETENSORS = "peft", "safetensors"
METADATA = "__metadata__"  # the name in a header that is no tensor
SUFFIX = ".safetensors"
_CODES = {dtype: code for code, dtype in STORED_AS.items()}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A PEFT folder or a safetensors file, of which nothing but the header is in memory."""

    path: Path
    format: str
    layout: Layout  # sorted by name
    metadata: Mapping[str, str]
    config: Mapping[str, Any] | None
    weights: Path
    offsets: Mapping[str, int] = field(repr=False)  # in the file, bytes

    def read(self, piece: TensorSlice) -> Array:
        """Values of a piece, whose dtype here may be another one.

        Raises:
            StateError: the file has become shorter.
        """
        dtype = self.layout.by_name[piece.spec.name].dtype
        width, wanted = DTYPES[dtype], piece.spec.numel
        with self.weights.open("rb") as file:
            file.seek(self.offsets[piece.spec.name] + piece.at * width)
            data = file.read(wanted * width)
        if len(data) != wanted * width:
            raise StateError(f"{self.weights}: {piece.spec.name}: {len(data)} bytes: must be {wanted * width}")
        return to_float32(data, dtype).reshape(piece.spec.shape)

    def values(self, pieces: list[TensorSlice]) -> Tensors:
        """Values of a part."""
        return {p.spec.name: self.read(p) for p in pieces}

    def check_fits(self, layout: Layout, field: str) -> None:
        """Raise unless names and shapes are those of ``layout``.

        Raises:
            ConfigError: names the first tensor that differs.
        """
        ours = {t.name: t.shape for t in self.layout.tensors}
        theirs = {t.name: t.shape for t in layout.tensors}
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                have, want = ours.get(name, "absent"), theirs.get(name, "absent")
                raise ConfigError(
                    field, self.path, f"must have the same names and shapes: {name} is {have}, not {want}"
                )


def open_source(path: Path, field: str = "PATH") -> Source:
    """Read the header of a PEFT folder or a safetensors file.

    Raises:
        ConfigError: a file is missing, or a dtype is not a float of 2 or 4 bytes.
        StateError: a file does not parse.
    """
    folder, weights = path.is_dir(), path / WEIGHTS_FILE if path.is_dir() else path
    if not weights.is_file() or (folder and not (path / CONFIG_FILE).is_file()):
        rule = f"must be a PEFT folder, with {CONFIG_FILE} and {WEIGHTS_FILE}, or a {SUFFIX} file"
        raise ConfigError(field, path, rule)
    header, start = header_of(weights)
    metadata = header.pop(METADATA, {})
    specs, offsets = [], {}
    peft = folder or any(group_of(name) != "head" for name in header)
    for name in sorted(header):
        entry = header[name]
        dtype = STORED_AS.get(entry["dtype"])
        if dtype is None:
            raise ConfigError(f"{field}.{name}.dtype", entry["dtype"], f"one of {list(STORED_AS)}")
        group = group_of(name) if peft else "other"
        specs.append(TensorSpec(name=name, shape=tuple(entry["shape"]), dtype=dtype, group=group))
        offsets[name] = start + entry["data_offsets"][0]
    return Source(
        path=path,
        format=PEFT if folder else SAFETENSORS,
        layout=Layout(tuple(specs)),
        metadata=metadata,
        config=_config(path / CONFIG_FILE) if folder else None,
        weights=weights,
        offsets=offsets,
    )


def header_of(weights: Path) -> tuple[dict[str, Any], int]:
    """The JSON header, and where the data begins; the safetensors library checks everything else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="numpy"), weights.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(size))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise StateError(f"{weights}: does not parse: {error}") from error
    return header, 8 + size


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StateError(f"{path}: does not parse: {error}") from error
    if not isinstance(config, dict):
        raise StateError(f"{path}: a {type(config).__name__}: must be a JSON object")
    return config


class Sink:
    """Writes a safetensors file by the piece; it appears under its name when all is written.

    Raises:
        ConfigError: the disk has too little room.
    """

    def __init__(self, path: Path, layout: Layout, metadata: Mapping[str, str]) -> None:
        self._path, self._part = path, path.with_name(path.name + ".part")
        self._offsets: dict[str, int] = {}
        header: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
        at = 0
        for spec in sorted(layout.tensors, key=lambda t: (-DTYPES[t.dtype], t.name)):  # as the library: aligned
            size = spec.numel * DTYPES[spec.dtype]
            header[spec.name] = {
                "dtype": _CODES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [at, at + size],
            }
            self._offsets[spec.name] = at
            at += size
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        self._head = text + b" " * (-len(text) % 8)
        self._size = 8 + len(self._head) + at

    def __enter__(self) -> Sink:
        self._is_new = not self._path.parent.exists()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._path.parent).free
        if self._size > free:
            raise ConfigError("-o", self._path, f"needs {self._size:,} bytes on disk, {free:,} are free")
        self._file = self._part.open("wb")
        self._file.write(struct.pack("<Q", len(self._head)) + self._head)
        self._file.truncate(self._size)
        return self

    def write(self, piece: TensorSlice, values: Array) -> None:
        """Write a piece, rounded to its dtype."""
        offset = self._offsets[piece.spec.name] + piece.at * DTYPES[piece.spec.dtype]
        self._file.seek(8 + len(self._head) + offset)
        self._file.write(from_float32(np.ascontiguousarray(values), piece.spec.dtype).data)

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._file.close()
        if kind is None:
            os.replace(self._part, self._path)
        else:
            self._part.unlink(missing_ok=True)
            if self._is_new and not any(self._path.parent.iterdir()):
                self._path.parent.rmdir()
