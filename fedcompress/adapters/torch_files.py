"""Converts files that torch has pickled (.bin, .pt, .pth) to safetensors, once, by torch's reader of weights alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcompress.adapters.base_model import cache_folder
from fedcompress.errors import ConfigError, MissingPackageError

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_NESTED = ("state_dict", "model_state_dict", "model")  # keys under which trainers put the weights


def convert_torch_file(file: Path, field: str = "PATH") -> Path:
    """Convert a file of ``torch.save`` to safetensors, once; the result is named by the file's content.

    Nothing but tensors and plain containers is unpickled.

    Args:
        file: the file.
        field: what errors call it.

    Returns:
        The safetensors file, in ``cache_folder``.

    Raises:
        ConfigError: it is no state dict of tensors, or holds more than weights.
        MissingPackageError: torch is absent.
    """
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    out = cache_folder() / "torch" / f"{digest[:32]}.safetensors"
    if out.is_file():
        return out
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError as error:
        raise MissingPackageError(f"package {error.name}: is absent: pip install 'fedcompress[site]'") from error
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its unpickler and its archive raise
        rule = f"must be weights alone, as torch.load(weights_only=True) reads them: {type(error).__name__}"
        raise ConfigError(field, file, rule) from None
    found = _find_tensors(loaded, file, field)
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in found.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        save_file(tensors, temporary, {"format": "pt"})
    except (ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(field, file, f"has tensors that safetensors cannot hold: {error}") from error
    os.replace(temporary, out)
    return out


def _find_tensors(loaded: Any, file: Path, field: str) -> dict[str, Any]:
    """Return the tensors of a state dict, which may lie under one key of a checkpoint."""
    import torch

    if isinstance(loaded, Mapping):
        nested = next((loaded[key] for key in _NESTED if isinstance(loaded.get(key), Mapping)), loaded)
        tensors = {str(name): value for name, value in nested.items() if isinstance(value, torch.Tensor)}
        if tensors and len(tensors) == len(nested):
            return tensors
    rule = "must be a state dict, names with tensors, or have one under `state_dict` or `model`"
    raise ConfigError(field, file, rule)
