"""Content hash of the frozen base model, so that two different bases cannot meet unnoticed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fedcompress.errors import ConfigError

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


def base_fingerprint(model_dir: Path) -> bytes:
    """SHA-256 over names and contents of the weight files, in name order, 32 bytes.

    Raises:
        ConfigError: the folder has no weight files.
    """
    files = sorted({f for pattern in _WEIGHTS for f in model_dir.glob(pattern)})
    if not files:
        raise ConfigError("model.path", model_dir, f"must be a folder with weights ({', '.join(_WEIGHTS)})")
    sha = hashlib.sha256(b"fedcompress-base-v1")
    for file in files:
        sha.update(json.dumps(file.name).encode())
        with file.open("rb") as stream:
            sha.update(hashlib.file_digest(stream, "sha256").digest())
    return sha.digest()
