"""Slices so small that tensors of a test are cut and joined."""

from __future__ import annotations

import pytest

from fedcompress import chunks
from fedcompress.pipeline import coding, states
from fedcompress.storage import tensor_file


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut layouts into slices of 100 entries."""
    for module in (coding, chunks, tensor_file, states):
        monkeypatch.setattr(module, "ROUND_CHUNK_ENTRIES", 100)
