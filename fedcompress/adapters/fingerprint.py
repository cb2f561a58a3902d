"""Content hash of the frozen base model, so that two different bases cannot meet unnoticed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fedcompress.errors import ConfigError

SOURCE = "fedcompress-source.sha256"  # of the file that a folder was converted from
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


def base_fingerprint(model_dir: Path, cache: Path | None = None) -> bytes:
    """SHA-256 over names and contents of the weight files, in name order, 32 bytes.

    A folder that we converted counts as the file that it was made from. ``cache`` is a file that keeps the result
    for as long as names, sizes and times of the weight files stay what they are.

    Raises:
        ConfigError: the folder has no weight files.
    """
    source = model_dir / SOURCE
    if source.is_file():
        return hashlib.sha256(b"fedcompress-source-v1" + source.read_bytes().strip()).digest()
    files = sorted({f for pattern in WEIGHTS for f in model_dir.glob(pattern)})
    if not files:
        raise ConfigError("model.path", model_dir, f"must be a folder with weights ({', '.join(WEIGHTS)})")
    facts = [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    if cache is not None and (known := _known(cache, facts)):
        return known
    sha = hashlib.sha256(b"fedcompress-base-v1")
    for file in files:
        sha.update(json.dumps(file.name).encode())
        with file.open("rb") as stream:
            sha.update(hashlib.file_digest(stream, "sha256").digest())
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_name(f"{cache.name}.part")
        part.write_text(json.dumps({"files": facts, "digest": sha.hexdigest()}), encoding="utf-8")
        part.replace(cache)
    return sha.digest()


def _known(cache: Path, facts: list[list[object]]) -> bytes:
    """The digest that was kept for these files, or nothing."""
    try:
        kept = json.loads(cache.read_text(encoding="utf-8"))
        return bytes.fromhex(kept["digest"]) if kept["files"] == facts else b""
    except (OSError, ValueError, KeyError, TypeError):
        return b""
