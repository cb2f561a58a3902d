"""Loads and saves stock PEFT adapter folders: ``adapter_config.json`` and ``adapter_model.safetensors``."""

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
LAYOUT_FILE = "layout.json"  # in place of weights, in the folder of a run that trains the base's own weights
STORED_AS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # dtype in safetensors -> in a layout
# Keys of a config that say where the base lies, and not what the adapter is.
_MACHINE_KEYS = ("base_model_name_or_path", "revision", "inference_mode")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter in memory has a config, a layout, and float32 values whatever dtype they are stored in.

    Args:
        config: the JSON of adapter_config.json.
        layout: names, shapes and stored dtypes of the tensors.
        tensors: float32 arrays by name, in the order of the layout.
    """

    config: Mapping[str, Any]
    layout: Layout
    tensors: Tensors


def adapter_digest(config: Mapping[str, Any]) -> bytes:
    """Hash a config without the keys that say where the base lies: SHA-256, 32 bytes, of its canonical JSON."""
    shared = {k: v for k, v in config.items() if k not in _MACHINE_KEYS}
    text = json.dumps(shared, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


def load_adapter(folder: Path) -> Adapter:
    """Load a stock PEFT folder; neither torch nor PEFT is needed.

    Values are widened to float32, which is exact. The folder of a run that trains the base's own weights is loaded,
    too: its state is all zero.

        >>> adapter = load_adapter(Path("adapter"))  # doctest: +SKIP
        >>> adapter.config["peft_type"]  # doctest: +SKIP
        'LORA'
        >>> adapter.layout.numel == sum(value.size for value in adapter.tensors.values())  # doctest: +SKIP
        True

    Args:
        folder: has adapter_config.json and adapter_model.safetensors.

    Returns:
        Config, layout and values; the tensors are ordered by name.

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
    """Load the folder of a run that trains the base's own weights: a config, and a layout in place of values.

    Returns:
        An adapter whose state, the difference from the base, is all zero.

    Raises:
        StateError: a file is missing or does not parse.
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
    """Write what ``load_weights`` reads.

    Args:
        folder: where to write; it is made where it is missing.
        config: says which weights are trained, see ``fedcompress.adapters.full``.
        layout: of the weights that are trained.
    """
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
    """Save a stock PEFT folder, which ``peft.PeftModel.from_pretrained`` loads.

    Equal input gives equal bytes. Each file is replaced as a whole. Values are rounded to the dtype that the layout
    gives them; those beyond the range of a dtype of 2 bytes become its largest or smallest finite value.

        >>> adapter = load_adapter(Path("adapter"))  # doctest: +SKIP
        >>> half = {name: value / 2 for name, value in adapter.tensors.items()}  # doctest: +SKIP
        >>> save_adapter(Path("half"), adapter.config, adapter.layout, half)  # doctest: +SKIP

    Args:
        folder: where to write; it is made where it is missing.
        config: the JSON of adapter_config.json.
        layout: names, shapes and dtypes of ``tensors``.
        tensors: finite float32 arrays by name, in the order of the layout.
        constants: arrays that are saved but not trained; they are written as they are, in their own dtypes.

    Raises:
        LayoutError: ``tensors`` does not have the layout.
        NonFiniteError: a value is NaN or infinite; names the tensor.
    """
    from safetensors import TensorSpec as Entry
    from safetensors import serialize_file

    layout.check(tensors, what="save_adapter")
    stored = {t.name: (t.dtype, t.shape, from_float32(tensors[t.name], t.dtype)) for t in layout.tensors}
    for name, value in (constants or {}).items():
        stored[name] = (str(value.dtype), value.shape, np.ascontiguousarray(value))
    entries = {
        name: Entry(dtype=dtype, shape=list(shape), data_ptr=data.ctypes.data, data_len=data.nbytes)
        for name, (dtype, shape, data) in stored.items()  # ``stored`` keeps the memory at these addresses alive
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{WEIGHTS_FILE}.part"
    serialize_file(entries, temporary, {"format": "pt"})  # ``serialize`` would make a copy in memory
    os.replace(temporary, folder / WEIGHTS_FILE)
    text = json.dumps(dict(config), indent=2, sort_keys=True) + "\n"
    _replace(folder / CONFIG_FILE, text.encode())


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def to_float32(data: bytes, dtype: str) -> Array:
    """Decode stored little-endian values of a dtype to float32, which is exact; the result has shape (n,)."""
    match dtype:
        case "bfloat16":
            return bfloat16.from_bfloat16(np.frombuffer(data, "<u2").astype(np.uint16))
        case "float16":
            return np.frombuffer(data, "<f2").astype(np.float32)
        case _:
            return np.frombuffer(data, "<f4").astype(np.float32)


def from_float32(values: Array, dtype: str) -> NDArray[Any]:
    """Encode float32 values of any shape as they are stored, rounded to a dtype; bfloat16 becomes uint16.

    Values beyond the range of a dtype of 2 bytes become its largest or smallest finite value.
    """
    match dtype:
        case "bfloat16":
            return np.ascontiguousarray(bfloat16.to_bfloat16(values), "<u2")
        case "float16":
            largest = np.finfo(np.float16).max
            return np.ascontiguousarray(np.clip(values, -largest, largest), "<f2")
        case _:
            return np.ascontiguousarray(values, "<f4")
