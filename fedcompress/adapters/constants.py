"""Tensors of an adapter that are not trained: read from safetensors bytes, and compared by digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from fedcompress.errors import StateError

MANIFEST, CONSTANTS = "fedcompress.json", "constants.safetensors"


INITIAL_FACTOR_SUFFIX = ".start"  # ends the names of factors that were taken out of the base


def load_constants(data: bytes) -> dict[str, Any]:
    """Constants from the bytes of their file.

    Raises:
        StateError: they do not parse.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return dict(load(data))
    except (SafetensorError, ValueError) as error:
        raise StateError(f"constants: do not parse: {error}") from error


def constants_digest(constants: Mapping[str, Any]) -> str:
    """SHA-256, hex, over names, dtypes, shapes and bytes; empty if there are none."""
    if not constants:
        return ""
    sha = hashlib.sha256(b"fedcompress-constants-v1")
    for name, value in sorted(constants.items()):
        array = constant_array(value) if hasattr(value, "detach") else value
        sha.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def constant_array(tensor: Any) -> NDArray[Any]:
    """A tensor as numpy has it; bfloat16 widened."""
    value = tensor.detach().cpu().contiguous()
    array: NDArray[Any] = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    return array
