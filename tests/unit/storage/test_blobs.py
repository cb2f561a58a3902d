"""Content-addressed files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from fedcompress.errors import StateError
from fedcompress.storage.blobs import BlobStore


def test_blobs(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    name = store.put(b"abc")
    assert name == hashlib.sha256(b"abc").hexdigest() == store.put(b"abc")
    assert store.get(name) == b"abc"
    other = store.put(b"other")
    (tmp_path / "blobs" / "half.1.part").write_bytes(b"torn")
    assert store.keep_only([name]) == 2
    with pytest.raises(StateError, match="cannot be read"):
        store.get(other)
