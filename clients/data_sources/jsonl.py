"""A JSONL file has one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator

from clients.data_sources.base import DataSource, Row
from fedcompress.errors import ConfigError


class JsonLines(DataSource):
    """Reads a file with a JSON object a line, in UTF-8; empty lines are skipped."""

    def rows(self) -> Iterator[Row]:
        """Yield the rows by line, from 1."""
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                where = f"{self.path.name}:{number}"
                try:
                    row = json.loads(line.decode("utf-8"))
                except (ValueError, RecursionError) as error:
                    rule = f"must be a JSON object in UTF-8: {type(error).__name__}"
                    raise ConfigError(where, f"{len(line)} bytes", rule) from None
                if not isinstance(row, dict):
                    raise ConfigError(where, type(row).__name__, "must be a JSON object")
                yield Row(where, row)
