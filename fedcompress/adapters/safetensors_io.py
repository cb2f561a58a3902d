"""Reads and writes safetensors files slice by slice, so that a file need not fit into memory."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fedcompress.adapters.folder import CONFIG_FILE, STORED_AS, WEIGHTS_FILE, from_float32, to_float32
from fedcompress.adapters.groups import FACTOR_A, FACTOR_B, PREFIX, group_of
from fedcompress.adapters.kept_tensors import MAX_BYTES, WIDTHS, KeptTensor, is_packed
from fedcompress.chunks import TensorSlice
from fedcompress.errors import ConfigError, StateError
from fedcompress.parameter_names import strip_wrappers
from fedcompress.types import DTYPES, Array, Layout, Tensors, TensorSpec

PEFT = "peft"  # format of a PEFT folder
SAFETENSORS = "safetensors"  # format of a single file
METADATA = "__metadata__"  # the only name in a header that is no tensor
SUFFIX = ".safetensors"
# files that are looked for in a folder, the first that is there counts
ADAPTER_WEIGHTS = (WEIGHTS_FILE, "adapter_model.bin")
MODEL_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_CODES = {dtype: code for code, dtype in STORED_AS.items()}


@dataclass(frozen=True, kw_only=True)
class TensorSource:
    """A source is a PEFT folder or a safetensors file of which nothing but the header is in memory."""

    path: Path
    format: str  # ``PEFT`` or ``SAFETENSORS``
    layout: Layout  # sorted by name
    metadata: Mapping[str, str]
    config: Mapping[str, Any] | None  # the JSON of adapter_config.json; None for a single file
    weights: Path  # the safetensors file, or the first of several
    offsets: Mapping[str, int] = field(repr=False)  # bytes from the beginning of the file, by name
    files: Mapping[str, Path] = field(repr=False, default_factory=dict)  # where a tensor is, if not in ``weights``
    kept: Mapping[str, KeptTensor] = field(repr=False, default_factory=dict)  # what is no part of the layout

    def read(self, piece: TensorSlice) -> Array:
        """Read a slice as float32; its dtype in the file counts, and not that in ``piece``.

        Raises:
            StateError: the file has become shorter.
        """
        dtype = self.layout.by_name[piece.spec.name].dtype
        width = DTYPES[dtype]
        size = piece.spec.numel * width
        weights = self.files.get(piece.spec.name, self.weights)
        with weights.open("rb") as file:
            file.seek(self.offsets[piece.spec.name] + piece.at * width)
            data = file.read(size)
        if len(data) != size:
            raise StateError(f"{weights}: {piece.spec.name}: {len(data)} bytes: must be {size}")
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

    def check_gathered(self, path: Path | None = None) -> None:
        """Raise ``ConfigError`` if a tensor has no entries, as DeepSpeed's ZeRO-3 leaves what is spread over ranks.

        Args:
            path: what the error names; the source's own if left out.

        Raises:
            ConfigError: names the first such tensor, and what to do.
        """
        empty = [t for t in self.layout.tensors if not t.numel]
        if empty:
            rule = (
                f"must not be empty: {len(empty)} of {len(self.layout.tensors)} tensors are. ZeRO-3 leaves that where "
                "weights are not gathered before saving: save again inside deepspeed.zero.GatheredParameters, or with "
                "stage3_gather_16bit_weights_on_model_save"
            )
            raise ConfigError(f"{path or self.path}: {empty[0].name}", list(empty[0].shape), rule)


def open_source(path: Path, field: str = "PATH", *, keep: bool = False, prefixed: bool = False) -> TensorSource:
    """Open a PEFT folder, a model's folder or a file of weights, and read its header.

    Weights are safetensors, in one file or in several with an index, or what torch has pickled, which is converted
    once. Names in a PEFT folder are without what wraps a model, as torch.compile. In what is none, tensors have
    groups as in one if any of them is named like an adapter's; otherwise all are in the group ``other``.

    Args:
        path: of the folder or the file.
        field: what errors call the path.
        keep: tensors that are no floats of 2 or 4 bytes are ``kept``; else they are refused.
        prefixed: factors have the names that PEFT gives them, or get them.

    Returns:
        The source, of which nothing but the header is in memory.

    Raises:
        ConfigError: a file is missing, or a dtype is not a float of 2 or 4 bytes and not kept.
        StateError: a file does not parse.
    """
    files = locate_weights(path, field)
    is_peft = (path / CONFIG_FILE).is_file()
    entries, metadata = _read_entries(files, field, unwrapped=is_peft, prefixed=prefixed)
    is_adapter = is_peft or any(group_of(name) != "head" for name in entries)
    specs: list[TensorSpec] = []
    offsets: dict[str, int] = {}
    kept: dict[str, KeptTensor] = {}
    for name in sorted(entries):
        file, data_start, entry = entries[name]
        dtype = STORED_AS.get(entry["dtype"])
        if dtype is None:
            kept[name] = _keep(name, file, data_start, entry, field=f"{field}.{name}", keep=keep)
            continue
        group = group_of(name) if is_adapter else "other"
        specs.append(TensorSpec(name=name, shape=tuple(entry["shape"]), dtype=dtype, group=group))
        offsets[name] = data_start + entry["data_offsets"][0]
    if sum(len(tensor.data) for tensor in kept.values()) > MAX_BYTES:
        largest = max(kept, key=lambda name: len(kept[name].data))
        rule = (
            f"all tensors that are no floats of 2 or 4 bytes may have {MAX_BYTES >> 20} MiB: they are kept as they are"
        )
        raise ConfigError(f"{field}.{largest}.dtype", kept[largest].dtype, rule)
    return TensorSource(
        path=path,
        format=PEFT if is_peft else SAFETENSORS,
        layout=Layout(tuple(specs)),
        metadata=metadata,
        config=_read_config(path / CONFIG_FILE) if is_peft else None,
        weights=files[0],
        offsets=offsets,
        files={name: entries[name][0] for name in offsets},
        kept=kept,
    )


def locate_weights(path: Path, field: str = "PATH") -> list[Path]:
    """Find the files of weights that a path means, as safetensors; what torch has pickled is converted.

    Args:
        path: of a PEFT folder, a model's folder, or a file.
        field: what errors call it.

    Returns:
        One file, or all shards.

    Raises:
        ConfigError: there are none, or one is in no form that is read.
        StateError: an index does not parse.
    """
    return [_as_safetensors(file, field) for file in _find_weights(path, field)]


def _find_weights(path: Path, field: str) -> list[Path]:
    """Find the files of weights that a path means.

    Raises:
        ConfigError: there are none.
    """
    if path.is_file():
        return [path]
    names = ADAPTER_WEIGHTS if (path / CONFIG_FILE).is_file() else MODEL_WEIGHTS
    for name in names:
        file = path / name
        if not file.is_file():
            continue
        if file.suffix != ".json":
            return [file]
        try:
            shards = sorted(set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StateError(f"{file}: does not parse: {type(error).__name__}: {error}") from error
        for shard in shards:
            if not isinstance(shard, str) or Path(shard).name != shard or not (path / shard).is_file():
                raise ConfigError(field, file, f"names {shard!r}, which must be a file beside it")
        return [path / shard for shard in shards]
    rule = f"must be a PEFT folder, with {CONFIG_FILE} and {WEIGHTS_FILE}, a model's folder, or a {SUFFIX} file"
    raise ConfigError(field, path, rule)


def _read_entries(
    files: Sequence[Path], field: str, *, unwrapped: bool, prefixed: bool
) -> tuple[dict[str, tuple[Path, int, dict[str, Any]]], dict[str, str]]:
    """Read the headers of files.

    Args:
        files: of safetensors.
        field: what errors call the path.
        unwrapped: names lose what wraps a model.
        prefixed: factors get PEFT's prefix.

    Returns:
        By name: file, byte at which its data begins, and entry of its header; and the metadata of all files.

    Raises:
        ConfigError: two tensors have one name.
    """
    entries: dict[str, tuple[Path, int, dict[str, Any]]] = {}
    metadata: dict[str, str] = {}
    for file in files:
        header, data_start = read_header(file)
        metadata |= header.pop(METADATA, {})
        for stored, entry in header.items():
            name = strip_wrappers(stored) if unwrapped else stored
            name = _prefix_factor(name, field) if prefixed else name
            if name in entries:
                raise ConfigError(f"{field}.{name}", stored, "names a tensor that another name is for, too")
            entries[name] = (file, data_start, entry)
    return entries, metadata


def _prefix_factor(name: str, field: str) -> str:
    """Return the name of an adapter's tensor with PEFT's prefix, which factors get that have none.

    Raises:
        ConfigError: a factor has a prefix that is not PEFT's.
    """
    if name.startswith(PREFIX) or not (FACTOR_A.search(name) or FACTOR_B.search(name)):
        return name
    if name.startswith("base_model."):
        raise ConfigError(f"{field}.{name}", "its name", f"must begin with {PREFIX}, as PEFT writes it")
    return PREFIX + name


def _as_safetensors(file: Path, field: str) -> Path:
    """Return a file of weights as safetensors; one that torch has pickled is converted."""
    if file.suffix == SUFFIX:
        return file
    from fedcompress.adapters.torch_files import SUFFIXES, convert_torch_file

    if file.suffix in SUFFIXES:
        return convert_torch_file(file, field)
    raise ConfigError(field, file, f"must end in {SUFFIX}, or as what torch saves: {', '.join(SUFFIXES)}")


def _keep(name: str, file: Path, data_start: int, entry: Mapping[str, Any], *, field: str, keep: bool) -> KeptTensor:
    """Read a tensor that is kept as it is.

    Raises:
        ConfigError: it must not be kept, is of weights of few bits, of a dtype that nobody knows, or too large.
    """
    dtype = str(entry["dtype"])
    begin, end = entry["data_offsets"]
    if keep and is_packed(name, dtype):
        rule = "are weights of few bits, whose scales would be changed: encode the model that is not quantised"
        raise ConfigError(f"{field}.dtype", dtype, rule)
    if not keep or dtype not in WIDTHS or end - begin > MAX_BYTES:
        rule = f"one of {list(STORED_AS)}"
        if keep and dtype in WIDTHS:
            rule += f": others are kept as they are, and may have {MAX_BYTES >> 20} MiB: encode what is not quantised"
        raise ConfigError(f"{field}.dtype", dtype, rule)
    with file.open("rb") as stream:
        stream.seek(data_start + begin)
        return KeptTensor(dtype=dtype, shape=tuple(entry["shape"]), data=stream.read(end - begin))


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
        kept: tensors that are written as they are.
    """

    def __init__(
        self, path: Path, layout: Layout, metadata: Mapping[str, str], kept: Mapping[str, KeptTensor] | None = None
    ) -> None:
        self._path = path
        self._temporary = path.with_name(path.name + ".part")
        self._offsets: dict[str, int] = {}
        header: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
        offset = 0
        self._kept = dict(kept or {})
        rows = [(DTYPES[t.dtype], t.name, _CODES[t.dtype], t.shape) for t in layout.tensors]
        rows += [(WIDTHS[t.dtype], name, t.dtype, t.shape) for name, t in self._kept.items()]
        # Wide dtypes first, then by name: the order of the library, which keeps all values aligned.
        for width, name, code, shape in sorted(rows, key=lambda row: (-row[0], row[1])):
            size = math.prod(shape) * width
            header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, offset + size]}
            self._offsets[name] = offset
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
        for name, tensor in self._kept.items():
            self._file.seek(self._data_start + self._offsets[name])
            self._file.write(tensor.data)
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
