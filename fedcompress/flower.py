"""Payloads travel in Flower records, which only this file of the library knows: no other imports flwr.

A payload is one ``Array`` with dtype ``uint8`` and a serialization type (``stype``) of our own, so that a strategy
which averages arrays fails on it loudly instead of averaging bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

import fedcompress
from fedcompress.errors import HeaderError, MismatchError
from fedcompress.formatting import escaped

STYPE = "fedcompress.v1"  # serialization type of the array
PAYLOAD = "fedcompress.payload"  # name of the array record
CONFIG = "fedcompress.config"  # name of the config record
DATA = "data"  # name of the array within its record
MAX_VERSION = 40  # characters of another version that an error message shows
Scalar = bool | int | float | str


def to_records(config: Mapping[str, Scalar], payload: bytes) -> RecordDict:
    """Build the content of a message.

    Args:
        config: scalars by name.
        payload: any bytes; an empty payload gets no record.
    """
    records = RecordDict({CONFIG: ConfigRecord(dict(config))})
    if payload:
        array = Array(dtype="uint8", shape=(len(payload),), stype=STYPE, data=payload)
        records[PAYLOAD] = ArrayRecord({DATA: array})
    return records


def from_records(records: RecordDict) -> tuple[dict[str, Scalar], bytes]:
    """Read the content of a message, the inverse of ``to_records``.

    Returns:
        Scalars by name, and the payload, empty if there is none.

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
    """Count the bytes of the objects that Flower makes of a message's content and sends, without HTTP around them."""
    total = 0
    pending = [records]
    while pending:
        item = pending.pop()
        total += len(item.deflate())
        pending += list((item.children or {}).values())
    return total


def require_version(app_version: str) -> None:
    """Raise ``MismatchError`` unless the Flower app was made for the installed version of the library.

    Raises:
        MismatchError: names both versions and the remedy.
    """
    if app_version != fedcompress.__version__:
        needed = escaped(app_version[:MAX_VERSION])  # an app may call itself anything
        raise MismatchError(
            "library-version",
            f"fedcompress: {fedcompress.__version__} is installed: the app needs {needed}: "
            f"pip install 'fedcompress=={needed}' here",
        )
