"""A site's rows are read from any source, checked for the columns of a task, and cut into two parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

from clients.data_sources import DataSource, Row, parse_source
from clients.data_sources.base import describe_columns
from clients.site import Data
from fedcompress.errors import ConfigError

__all__ = ["is_heldout", "read_rows", "find_source"]


def find_source(data: Data, part: str) -> DataSource:
    """Return the source of ``train`` or ``heldout``.

    Where the site names no source for the second, both are cut from the first.
    """
    if part == "train" or not data.heldout:
        return parse_source(data.train, "train")
    return parse_source(data.heldout, "heldout")


def is_heldout(row: Row, share: float) -> bool:
    """Return whether a row belongs to the held-out part.

    It does if 32 bits of a hash of its content are in the lowest ``share`` of their range, so equal rows stay together.
    """
    text = json.dumps(dict(row.values), sort_keys=True, default=str)
    bits = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return bits < share * (1 << 32)


def read_rows(data: Data, part: str, wants: Sequence[Sequence[str]] = ()) -> Iterator[Row]:
    """Yield the rows of a part.

    Args:
        data: the section ``[data]`` of site.toml.
        part: ``train`` or ``heldout``.
        wants: sets of columns, of which the first row must have one whole; empty: it is not checked.

    Yields:
        Rows in the source's order.

    Raises:
        ConfigError: the source cannot be read, lacks columns, or has a malformed row.
        MissingPackageError: a package that reads the source is absent.
    """
    source = find_source(data, part)
    source.check()
    for number, row in enumerate(source.rows()):
        if number == 0:
            _check_columns(source, row, wants)
        if data.heldout or is_heldout(row, data.heldout_share) == (part == "heldout"):
            yield row


def _check_columns(source: DataSource, row: Row, wants: Sequence[Sequence[str]]) -> None:
    """Raise ``ConfigError`` unless a row has all columns of one of ``wants``."""
    if not wants or any(set(names) <= set(row.values) for names in wants):
        return
    needed = ", or ".join(" and ".join(repr(name) for name in names) for names in wants)
    rule = f"must have {needed}; other names are told under [data] in site.toml"
    raise ConfigError(f"{source.field}: {row.where}", describe_columns(row.values), rule)
