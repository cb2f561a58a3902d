"""Reads, writes and compares the constants of an adapter: tensors that all sites must have and nobody trains."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedcompress.errors import StateError

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "fedcompress.json"  # file of a template that says what all sites must agree on
CONSTANTS = "constants.safetensors"  # file of a template with the constants; absent if there are none
INITIAL_FACTOR_SUFFIX = ".start"  # ends the names of initial factors, whose product the base is reduced by


def load_constants(data: bytes) -> dict[str, Any]:
    """Load constants from the bytes of a safetensors file, as numpy arrays by name.

    Raises:
        StateError: the bytes do not parse.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return dict(load(data))
    except (SafetensorError, ValueError) as error:
        raise StateError(f"constants: do not parse: {error}") from error


def save_constants(path: Path, constants: Mapping[str, NDArray[Any]]) -> None:
    """Write constants to a safetensors file."""
    from safetensors.numpy import save_file

    save_file({n: np.ascontiguousarray(v) for n, v in constants.items()}, path)


def select_initial_factors(constants: Mapping[str, Any]) -> dict[str, Any]:
    """Select the initial factors among constants, by the names of the trained factors that they belong to."""
    return {
        name.removesuffix(INITIAL_FACTOR_SUFFIX): value
        for name, value in constants.items()
        if name.endswith(INITIAL_FACTOR_SUFFIX)
    }


def constants_digest(constants: Mapping[str, Any]) -> str:
    """Hash names, dtypes, shapes and bytes of constants, numpy arrays or torch tensors, in order of name.

    Returns:
        The SHA-256 in hex; empty if there are no constants.
    """
    if not constants:
        return ""
    sha = hashlib.sha256(b"fedcompress-constants-v1")
    for name, value in sorted(constants.items()):
        array = to_numpy(value) if hasattr(value, "detach") else value
        sha.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """Convert a tensor to a numpy array of the same dtype; bfloat16, which numpy lacks, becomes float32."""
    host_tensor = tensor.detach().cpu().contiguous()
    array: NDArray[Any] = (host_tensor.float() if str(host_tensor.dtype) == "torch.bfloat16" else host_tensor).numpy()
    return array
