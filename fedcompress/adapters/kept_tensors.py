"""Tensors that are no floats of 2 or 4 bytes, as buffers of positions, are kept as they are; they must be small."""

from __future__ import annotations

import base64
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedcompress.errors import LimitError, PayloadError

# bytes of an entry, by the dtype's name in safetensors
WIDTHS = {
    "BOOL": 1,
    "I8": 1,
    "U8": 1,
    "I16": 2,
    "U16": 2,
    "I32": 4,
    "U32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
MAX_BYTES = 4 << 20  # of all kept tensors of a file
# Ends of names of weights of few bits; their scales are floats, which a code would change.
_PACKED = re.compile(r"(^|[._])(weight|qweight|qzeros|weight_packed|SCB|g_idx|quant_state\..+)$")
_BUFFERS = ("BOOL", "F64")  # dtypes that no weights of few bits have


@dataclass(frozen=True, kw_only=True)
class KeptTensor:
    """A tensor as it lies in a safetensors file.

    Args:
        dtype: its name in safetensors, of ``WIDTHS``.
        shape: of the tensor.
        data: its bytes, little-endian.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def is_packed(name: str, dtype: str) -> bool:
    """Return True if a tensor is one of weights of few bits, as bitsandbytes, GPTQ, AWQ and FP8 checkpoints have."""
    return dtype not in _BUFFERS and bool(_PACKED.search(name))


def kept_to_json(kept: Mapping[str, KeptTensor]) -> dict[str, Any]:
    """Return kept tensors as values for JSON: bytes are deflated, in base64."""
    return {
        name: {"dtype": t.dtype, "shape": list(t.shape), "data": base64.b64encode(zlib.compress(t.data, 9)).decode()}
        for name, t in kept.items()
    }


def parse_kept(raw: Mapping[str, Any]) -> dict[str, KeptTensor]:
    """Parse what ``kept_to_json`` makes.

    Raises:
        LimitError: they expand to more than ``MAX_BYTES``.
        PayloadError: an entry is malformed.
    """
    kept: dict[str, KeptTensor] = {}
    left = MAX_BYTES
    for name, entry in raw.items():
        dtype, shape = entry["dtype"], entry["shape"]
        if dtype not in WIDTHS or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape):
            raise PayloadError(f"manifest.kept.{name}: must be of one of {list(WIDTHS)}, of a shape")
        size = math.prod(shape) * WIDTHS[dtype]
        if size > left:
            raise LimitError(f"manifest.kept: more than {MAX_BYTES} bytes: at most these")
        left -= size
        inflater = zlib.decompressobj()
        try:
            data = inflater.decompress(base64.b64decode(entry["data"], validate=True), size + 1)
        except zlib.error as error:
            raise PayloadError(f"manifest.kept.{name}: not a zlib stream: {error}") from error
        if len(data) != size or not inflater.eof or inflater.unused_data:
            raise PayloadError(f"manifest.kept.{name}: must be a zlib stream of {size} bytes")
        kept[name] = KeptTensor(dtype=dtype, shape=tuple(shape), data=data)
    return kept
