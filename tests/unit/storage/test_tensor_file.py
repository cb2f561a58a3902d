"""Files of tensors that are read slice by slice."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedcompress.errors import StateError
from fedcompress.storage.tensor_file import MAGIC, open_tensor_file
from tests.unit.slices import LAYOUT

pytestmark = pytest.mark.usefixtures("small_slices")


def test_files_that_are_not_streams_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with pytest.raises(StateError, match="cannot be read"):
        open_tensor_file(path, LAYOUT)
    path.write_bytes(b"nothing")
    with pytest.raises(StateError, match="is not a stream"):
        open_tensor_file(path, LAYOUT)
    path.write_bytes(MAGIC + b"\0" * 7)
    with pytest.raises(StateError, match="the layout needs"):
        open_tensor_file(path, LAYOUT)
