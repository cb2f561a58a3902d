"""A site's rows are read from any source, checked for the columns of a task, and cut into two parts."""

from __future__ import annotations

import hashlib
import itertools
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
        return parse_source(data.train, "train", data.delimiter)
    return parse_source(data.heldout, "heldout", data.delimiter)


def is_heldout(row: Row, share: float) -> bool:
    """Return whether a row belongs to the held-out part.

    It does if 32 bits of a hash of its content are in the lowest ``share`` of their range, so equal rows stay together.
    """
    return hash_row(row) < share * (1 << 32)


def hash_row(row: Row) -> int:
    """Return 32 bits of a hash of a row's content."""
    text = json.dumps(dict(row.values), sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


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
    rows = _checked(source, wants)
    if data.heldout:
        yield from rows
        return
    for row, is_out in _cut(rows, data.heldout_share):
        if is_out == (part == "heldout"):
            yield row


def _checked(source: DataSource, wants: Sequence[Sequence[str]]) -> Iterator[Row]:
    """Yield the rows of a source, of which the first must have the columns."""
    for number, row in enumerate(source.rows()):
        if number == 0:
            _check_columns(source, row, wants)
        yield row


def _cut(rows: Iterator[Row], share: float) -> Iterator[tuple[Row, bool]]:
    """Yield each row with whether it is held out: by its hash, or one row where that leaves a part empty.

    A few rows, or rows that are all equal, may all fall into one part. Then the row with the lowest hash is held out,
    the first of them; a single row is only trained on.

    Args:
        rows: all of a source; only the first ones, until both parts have one, are in memory together.
        share: of the rows that are held out.
    """
    first: list[Row] = []
    seen: set[bool] = set()
    for row in rows:
        first.append(row)
        seen.add(is_heldout(row, share))
        if len(seen) == 2:
            break
    if len(seen) == 2:
        for row in itertools.chain(first, rows):
            yield row, is_heldout(row, share)
        return
    chosen = min(range(len(first)), key=lambda number: hash_row(first[number]), default=0)
    for number, row in enumerate(first):
        yield row, number == chosen and len(first) > 1


def _check_columns(source: DataSource, row: Row, wants: Sequence[Sequence[str]]) -> None:
    """Raise ``ConfigError`` unless a row has all columns of one of ``wants``."""
    if not wants or any(set(names) <= set(row.values) for names in wants):
        return
    wanted = {name for names in wants for name in names}
    blank = next((name for name in row.values if name != name.strip() and name.strip() in wanted), "")
    if blank:
        rule = f"must be {blank.strip()!r}, without blanks around it: correct the header, or name it so in [data]"
        raise ConfigError(f"{source.field}: {row.where}", f"the column {blank!r}", rule)
    needed = ", or ".join(" and ".join(repr(name) for name in names) for names in wants)
    rule = f"must have {needed}; other names are told under [data] in site.toml"
    raise ConfigError(f"{source.field}: {row.where}", describe_columns(row.values), rule)
