"""Payloads in Flower's records, and versions of the apps."""

from __future__ import annotations

import numpy as np
import pytest

import fedcompress
from fedcompress.errors import HeaderError, MismatchError


def test_payloads_in_flower_records() -> None:
    from flwr.app import Array, ArrayRecord, RecordDict

    from fedcompress.flower import CONFIG, PAYLOAD, from_records, require_version, to_records

    records = to_records({"task": "t", "n": 1}, b"payload")
    assert from_records(records) == ({"task": "t", "n": 1}, b"payload")
    assert from_records(to_records({"a": True}, b"")) == ({"a": True}, b"")
    array = records.array_records[PAYLOAD]["data"]
    with pytest.raises(TypeError):
        array.numpy()  # an accidental average over bytes fails
    with pytest.raises(HeaderError, match=CONFIG):
        from_records(RecordDict())
    records[PAYLOAD] = ArrayRecord({"data": Array(np.zeros(3, np.uint8))})
    with pytest.raises(HeaderError, match="stype"):
        from_records(records)
    require_version(fedcompress.__version__)
    with pytest.raises(MismatchError, match=r"the app needs 9\.9"):
        require_version("9.9")


def test_the_apps_need_this_library() -> None:
    import clients
    import server

    assert clients.LIBRARY == server.LIBRARY == fedcompress.__version__
