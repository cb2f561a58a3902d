"""Stock PEFT adapter folders: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcompress.adapters.groups import group_of
from fedcompress.errors import ConfigError, LayoutError, StateError
from fedcompress.numerics import bfloat16
from fedcompress.types import Array, Layout, Tensors, TensorSpec, zeros

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
LAYOUT_FILE = "layout.json"
STORED_AS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_MACHINE_KEYS = ("base_model_name_or_path", "revision", "inference_mode")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A PEFT adapter in memory: its config as JSON, its layout and float32 values."""

    config: Mapping[str, Any]
    layout: Layout
    tensors: Tensors


def adapter_digest(config: Mapping[str, Any]) -> bytes:
    """SHA-256 of the canonical config, without the keys that say where the base lies."""
    shared = {k: v for k, v in config.items() if k not in _MACHINE_KEYS}
    text = json.dumps(shared, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


def load_adapter(folder: Path) -> Adapter:
    """Read a PEFT folder; tensors are ordered by name.

    Raises:
        ConfigError: a file is missing, or a dtype is not a float of 2 or 4 bytes.
        StateError: a file does not parse.
    """
    from safetensors import SafetensorError, deserialize

    if (folder / LAYOUT_FILE).is_file():
        return load_weights(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ConfigError("adapter", folder / name, "must exist: a PEFT adapter folder")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"{CONFIG_FILE}: a {type(config).__name__}: must be a JSON object")
        entries = sorted(deserialize((folder / WEIGHTS_FILE).read_bytes()))  # type: ignore[no-untyped-call]
    except (ValueError, RecursionError, SafetensorError) as error:
        raise StateError(f"adapter: {folder}: does not parse: {error}") from error
    specs, tensors = [], {}
    for name, entry in entries:
        dtype = STORED_AS.get(entry["dtype"])
        if dtype is None:
            raise ConfigError(f"adapter.{name}.dtype", entry["dtype"], f"one of {list(STORED_AS)}")
        shape = tuple(entry["shape"])
        specs.append(TensorSpec(name=name, shape=shape, dtype=dtype, group=group_of(name)))
        tensors[name] = to_float32(entry["data"], dtype).reshape(shape)
    return Adapter(config=config, layout=Layout(tuple(specs)), tensors=tensors)


def load_weights(folder: Path) -> Adapter:
    """Read a folder of a run that trains weights of the base: a config and a layout; the state is what was added.

    Raises:
        StateError: a file does not parse, or is missing.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        layout = Layout.from_json((folder / LAYOUT_FILE).read_text(encoding="utf-8"))
        if not isinstance(config, dict) or "weights" not in config:
            raise ValueError(f"{CONFIG_FILE}: must be a JSON object with the key weights")
    except (OSError, ValueError, RecursionError, LayoutError) as error:
        raise StateError(f"adapter: {folder}: does not parse: {error}") from error
    return Adapter(config=config, layout=layout, tensors=zeros(layout))


def save_weights(folder: Path, config: Mapping[str, Any], layout: Layout) -> None:
    """Write such a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / CONFIG_FILE, (json.dumps(dict(config), indent=2, sort_keys=True) + "\n").encode())
    _replace(folder / LAYOUT_FILE, layout.to_json().encode())


def save_adapter(
    folder: Path,
    config: Mapping[str, Any],
    layout: Layout,
    tensors: Mapping[str, Array],
    constants: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Write a stock PEFT folder; equal input gives equal bytes, each file replaced whole.

    Values beyond the range of a dtype of two bytes become its ends. ``constants`` are tensors that are saved but
    not trained, as they are.

    Raises:
        LayoutError: ``tensors`` does not have the layout.
    """
    from safetensors import TensorSpec as Entry
    from safetensors import serialize_file

    layout.check(tensors, what="save_adapter")
    stored = {t.name: (t.dtype, t.shape, from_float32(tensors[t.name], t.dtype)) for t in layout.tensors}
    for name, value in (constants or {}).items():
        stored[name] = (str(value.dtype), value.shape, np.ascontiguousarray(value))
    entries = {
        name: Entry(dtype=dtype, shape=list(shape), data_ptr=data.ctypes.data, data_len=data.nbytes)
        for name, (dtype, shape, data) in stored.items()  # which keeps the data alive
    }
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{WEIGHTS_FILE}.part"
    serialize_file(entries, part, {"format": "pt"})  # not by way of memory, as ``serialize``
    os.replace(part, folder / WEIGHTS_FILE)
    text = json.dumps(dict(config), indent=2, sort_keys=True) + "\n"
    _replace(folder / CONFIG_FILE, text.encode())


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)


def to_float32(data: bytes, dtype: str) -> Array:
    """Stored little-endian values of a dtype, widened exactly."""
    match dtype:
        case "bfloat16":
            return bfloat16.from_bfloat16(np.frombuffer(data, "<u2").astype(np.uint16))
        case "float16":
            return np.frombuffer(data, "<f2").astype(np.float32)
        case _:
            return np.frombuffer(data, "<f4").astype(np.float32)


def from_float32(values: Array, dtype: str) -> NDArray[Any]:
    """Values as they are stored; those beyond the range of a dtype of two bytes become its ends."""
    match dtype:
        case "bfloat16":
            return np.ascontiguousarray(bfloat16.to_bfloat16(values), "<u2")
        case "float16":
            top = np.finfo(np.float16).max
            return np.ascontiguousarray(np.clip(values, -top, top), "<f2")
        case _:
            return np.ascontiguousarray(values, "<f4")
