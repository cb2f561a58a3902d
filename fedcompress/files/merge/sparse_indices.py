"""Sparse adapters store where their values are; these indices become numbers that can be compared and written here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fedcompress.adapters.folder import CONFIG_FILE, WEIGHTS_FILE
from fedcompress.adapters.safetensors_io import locate_weights
from fedcompress.errors import ConfigError, StateError

_INTEGERS = {"I32": "<i4", "I64": "<i8"}  # safetensors dtype to numpy dtype
_FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # safetensors dtype as read to dtype as written
_EXACT = 1 << 24  # float32 can hold all integers below this


def with_float_indices(folder: Path, scratch: Path) -> Path:
    """Return a folder without integer tensors: the given one, or a copy whose integers are float32.

    PEFT reads both, and saves float32 indices on some systems.

    Args:
        folder: PEFT folder.
        scratch: folder to write the copy to, if one is needed.

    Returns:
        ``folder`` or ``scratch``.

    Raises:
        ConfigError: an index is 2^24 or more.
        StateError: the file does not parse.
    """
    from safetensors import SafetensorError, deserialize, serialize
    from safetensors import TensorSpec as Entry

    (weights,) = locate_weights(folder)
    try:
        entries: list[tuple[str, Any]] = deserialize(weights.read_bytes())  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError) as error:
        raise StateError(f"{weights}: does not parse: {error}") from error
    if not any(entry["dtype"] in _INTEGERS for _, entry in entries):
        return folder
    stored = []  # keeps the buffers alive until they are serialized
    out = {}
    for name, entry in entries:
        dtype = _FLOATS.get(entry["dtype"], "float32")
        data = np.frombuffer(entry["data"], np.uint8)
        if entry["dtype"] in _INTEGERS:
            indices = np.frombuffer(entry["data"], _INTEGERS[entry["dtype"]])
            if indices.size and np.abs(indices).max() >= _EXACT:
                raise ConfigError(f"{folder}: {name}", int(np.abs(indices).max()), "must be places below 2^24")
            data = indices.astype("<f4").view(np.uint8)
        stored.append(data)
        out[name] = Entry(dtype=dtype, shape=list(entry["shape"]), data_ptr=data.ctypes.data, data_len=data.nbytes)
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / WEIGHTS_FILE).write_bytes(bytes(serialize(out, {"format": "pt"})))
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    (scratch / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    return scratch
