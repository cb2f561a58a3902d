"""Hashes the content of the frozen base model, so that two different bases cannot meet unnoticed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fedcompress.errors import ConfigError

SOURCE = "fedcompress-source.sha256"  # file in a folder that we converted: the SHA-256 of what it was made from
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")  # names of weight files


def base_fingerprint(model_dir: Path, cache: Path | None = None) -> bytes:
    """Hash names and contents of the weight files, in order of name.

    A folder that we converted counts as the file that it was made from.

    Args:
        model_dir: the base model's folder.
        cache: a file that keeps the result for as long as names, sizes and times of the weight files stay the same;
            it is made if it is missing.

    Returns:
        The SHA-256, 32 bytes.

    Raises:
        ConfigError: the folder has no weight files.
    """
    source = model_dir / SOURCE
    if source.is_file():
        return hashlib.sha256(b"fedcompress-source-v1" + source.read_bytes().strip()).digest()
    files = sorted({f for pattern in WEIGHTS for f in model_dir.glob(pattern)})
    if not files:
        raise ConfigError("model.path", model_dir, f"must be a folder with weights ({', '.join(WEIGHTS)})")
    stamps = [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    if cache is not None and (cached := _read_cached(cache, stamps)):
        return cached
    sha = hashlib.sha256(b"fedcompress-base-v1")
    for file in files:
        sha.update(json.dumps(file.name).encode())
        with file.open("rb") as stream:
            sha.update(hashlib.file_digest(stream, "sha256").digest())
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_name(f"{cache.name}.part")
        temporary.write_text(json.dumps({"files": stamps, "digest": sha.hexdigest()}), encoding="utf-8")
        temporary.replace(cache)
    return sha.digest()


def _read_cached(cache: Path, stamps: list[list[object]]) -> bytes:
    """Read the digest that was stored for files with these stamps; empty if there is none."""
    try:
        entry = json.loads(cache.read_text(encoding="utf-8"))
        return bytes.fromhex(entry["digest"]) if entry["files"] == stamps else b""
    except (OSError, ValueError, KeyError, TypeError):
        return b""
