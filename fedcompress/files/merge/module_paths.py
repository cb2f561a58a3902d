"""Sparse adapters that save where their values are: places as numbers that can be compared and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fedcompress.adapters.folder import CONFIG_FILE, WEIGHTS_FILE
from fedcompress.errors import ConfigError, StateError

_INTEGERS = {"I32": "<i4", "I64": "<i8"}
_EXACT = 1 << 24  # the largest integer below which float32 has all


def with_float_places(folder: Path, scratch: Path) -> Path:
    """The folder, or a copy whose integers are float32: PEFT reads both, and saves the latter on some systems.

    Raises:
        ConfigError: a place is beyond 2^24.
        StateError: the file does not parse.
    """
    from safetensors import SafetensorError, deserialize, serialize
    from safetensors import TensorSpec as Entry

    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        return folder
    try:
        entries: list[tuple[str, Any]] = deserialize(weights.read_bytes())  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError) as error:
        raise StateError(f"{weights}: does not parse: {error}") from error
    if not any(entry["dtype"] in _INTEGERS for _, entry in entries):
        return folder
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    stored, out = [], {}
    for name, entry in entries:
        data, dtype = np.frombuffer(entry["data"], np.uint8), names.get(entry["dtype"], "float32")
        if entry["dtype"] in _INTEGERS:
            places = np.frombuffer(entry["data"], _INTEGERS[entry["dtype"]])
            if places.size and np.abs(places).max() >= _EXACT:
                raise ConfigError(f"{folder}: {name}", int(np.abs(places).max()), "must be places below 2^24")
            data = places.astype("<f4").view(np.uint8)
        stored.append(data)  # alive until serialized
        out[name] = Entry(dtype=dtype, shape=list(entry["shape"]), data_ptr=data.ctypes.data, data_len=data.nbytes)
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / WEIGHTS_FILE).write_bytes(bytes(serialize(out, {"format": "pt"})))
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    (scratch / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    return scratch
