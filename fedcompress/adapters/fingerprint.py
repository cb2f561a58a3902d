"""Content hash of the frozen base model, so that two different bases cannot meet unnoticed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fedcompress.errors import ConfigError

SOURCE = "fedcompress-source.sha256"  # of the file that a folder was converted from
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


def base_fingerprint(model_dir: Path) -> bytes:
    """SHA-256 over names and contents of the weight files, in name order, 32 bytes.

    A folder that we converted counts as the file that it was made from.

    Raises:
        ConfigError: the folder has no weight files.
    """
    source = model_dir / SOURCE
    if source.is_file():
        return hashlib.sha256(b"fedcompress-source-v1" + source.read_bytes().strip()).digest()
    files = sorted({f for pattern in WEIGHTS for f in model_dir.glob(pattern)})
    if not files:
        raise ConfigError("model.path", model_dir, f"must be a folder with weights ({', '.join(WEIGHTS)})")
    sha = hashlib.sha256(b"fedcompress-base-v1")
    for file in files:
        sha.update(json.dumps(file.name).encode())
        with file.open("rb") as stream:
            sha.update(hashlib.file_digest(stream, "sha256").digest())
    return sha.digest()
