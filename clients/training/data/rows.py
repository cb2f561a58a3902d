"""A site's rows: from whatever source, with the columns that a task wants, cut in two parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

from clients.data_sources import Row, Source, parse_source
from clients.data_sources.base import describe_columns
from clients.site import Data
from fedcompress.errors import ConfigError

__all__ = ["is_heldout", "read_rows", "find_source"]


def find_source(data: Data, part: str) -> Source:
    """Where the rows of ``train`` or ``heldout`` are; without a source for the second, both are cut from the first."""
    cut = part == "train" or not data.heldout
    return parse_source(data.train if cut else data.heldout, "train" if cut else "heldout")


def is_heldout(row: Row, share: float) -> bool:
    """Whether a row belongs to the held-out part, by 32 bits of a hash of its content: equal rows stay together."""
    text = json.dumps(dict(row.values), sort_keys=True, default=str)
    bits = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return bits < share * (1 << 32)


def read_rows(data: Data, part: str, wants: Sequence[Sequence[str]] = ()) -> Iterator[Row]:
    """Rows of a part.

    Args:
        data: a site's.
        part: ``train`` or ``heldout``.
        wants: the first row must have all columns of one of these.

    Raises:
        ConfigError: the source cannot be read, lacks columns, or has a malformed row.
        MissingPackageError: what reads the source is absent.
    """
    source = find_source(data, part)
    source.check()
    for number, row in enumerate(source.rows()):
        if number == 0:
            _check_columns(source, row, wants)
        if data.heldout or is_heldout(row, data.heldout_share) == (part == "heldout"):
            yield row


def _check_columns(source: Source, row: Row, wants: Sequence[Sequence[str]]) -> None:
    if not wants or any(set(names) <= set(row.values) for names in wants):
        return
    needed = ", or ".join(" and ".join(repr(name) for name in names) for names in wants)
    rule = f"must have {needed}; other names are told under [data] in site.toml"
    raise ConfigError(f"{source.field}: {row.where}", describe_columns(row.values), rule)
