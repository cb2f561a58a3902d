"""The public names of the library."""

from __future__ import annotations

import pytest

import fedcompress


def test_public_names_are_importable() -> None:
    assert all(getattr(fedcompress, name) is not None for name in fedcompress.__all__)
    assert dir(fedcompress) == sorted(fedcompress.__all__)
    with pytest.raises(AttributeError):
        fedcompress.nothing  # noqa: B018
