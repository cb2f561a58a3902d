"""A JSONL file has one JSON object a line; a JSON file may also be one array of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from clients.data_sources.base import DataSource, Row
from fedcompress.errors import ConfigError

LARGEST_ARRAY = 1 << 30  # bytes of a file that is one array, which is read whole


class JsonLines(DataSource):
    """Reads a file with a JSON object a line, in UTF-8, or with one array of objects; empty lines are skipped."""

    def rows(self) -> Iterator[Row]:
        """Yield the rows by line, from 1; those of an array by their number."""
        with self.path.open("rb") as stream:
            if _begins_array(stream.read(64)):
                yield from self._rows_of_array()
                return
            stream.seek(0)
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                where = f"{self.path.name}:{number}"
                row = _parse(line, where)
                if not isinstance(row, dict):
                    raise ConfigError(where, type(row).__name__, "must be a JSON object")
                yield Row(where, row)

    def _rows_of_array(self) -> Iterator[Row]:
        """Yield the objects of a file that is one array."""
        if self.path.stat().st_size > LARGEST_ARRAY:
            rule = "must be a JSON object a line: an array is read whole, and may have 1 GiB"
            raise ConfigError(self.field, self.path, rule)
        rows = _parse(self.path.read_bytes(), self.path.name)
        for number, row in enumerate(rows, start=1):
            where = f"{self.path.name}:{number}"
            if not isinstance(row, dict):
                raise ConfigError(where, type(row).__name__, "must be a JSON object")
            yield Row(where, row)


def _begins_array(start: bytes) -> bool:
    """Return True if a file begins as an array of objects does."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    return text[:1] == b"[" and text[1:].lstrip()[:1] in (b"{", b"]", b"")


def _parse(data: bytes, where: str) -> Any:
    """Parse JSON in UTF-8, with or without a byte order mark.

    Raises:
        ConfigError: it does not parse; says where, not what is in it.
    """
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        rule = f"must be a JSON object in UTF-8: {type(error).__name__}"
        raise ConfigError(where, f"{len(data)} bytes", rule) from None
