"""Payloads in Flower records. The only file of the library that imports flwr.

A payload travels as one ``Array`` with our own ``stype`` and dtype ``uint8``, so that a
strategy which averages arrays fails on it loudly instead of averaging bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

import fedcompress
from fedcompress.errors import HeaderError, MismatchError
from fedcompress.formatting import escaped

STYPE = "fedcompress.v1"
PAYLOAD, CONFIG, DATA = "fedcompress.payload", "fedcompress.config", "data"
MAX_VERSION = 40  # characters of a version that are told
Scalar = bool | int | float | str


def to_records(config: Mapping[str, Scalar], payload: bytes) -> RecordDict:
    """Content of a message: flat scalars, and the payload if it is not empty."""
    records = RecordDict({CONFIG: ConfigRecord(dict(config))})
    if payload:
        array = Array(dtype="uint8", shape=(len(payload),), stype=STYPE, data=payload)
        records[PAYLOAD] = ArrayRecord({DATA: array})
    return records


def from_records(records: RecordDict) -> tuple[dict[str, Scalar], bytes]:
    """Inverse of ``to_records``.

    Raises:
        HeaderError: the message is not one of ours.
    """
    config = records.config_records.get(CONFIG)
    if config is None:
        raise HeaderError(f"message: {list(records)}: must have the record {CONFIG}")
    arrays = records.array_records.get(PAYLOAD)
    if arrays is None:
        return dict(config), b""
    array = arrays.get(DATA)
    if array is None or array.stype != STYPE or array.dtype != "uint8":
        raise HeaderError(f"message.{PAYLOAD}: must be one uint8 array of stype {STYPE}")
    return dict(config), array.data


def carried_bytes(records: RecordDict) -> int:
    """Bytes of the objects that Flower makes of a message's content and sends, without HTTP around them."""
    total, rest = 0, [records]
    while rest:
        item = rest.pop()
        total += len(item.deflate())
        rest += list((item.children or {}).values())
    return total


def require_version(app_version: str) -> None:
    """Raise unless the Flower app was made for the installed library.

    Raises:
        MismatchError: with both versions and the remedy.
    """
    if app_version != fedcompress.__version__:
        needed = escaped(app_version[:MAX_VERSION])  # an app may call itself anything
        raise MismatchError(
            "library-version",
            f"fedcompress: {fedcompress.__version__} is installed: the app needs {needed}: "
            f"pip install 'fedcompress=={needed}' here",
        )
