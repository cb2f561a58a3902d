"""CSV and TSV files, with a header, are read by Python's csv module."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from clients.data_sources.base import DataSource, Row
from fedcompress.errors import ConfigError

MOST = 1 << 26  # bytes of a field; Python's own limit is 128 KiB


class Separated(DataSource):
    """Reads values separated by commas (by tabs in ``.tsv``), in UTF-8, with column names in the first line.

    All values are text. Quotes and line ends within quotes are as RFC 4180 has them.
    """

    def rows(self) -> Iterator[Row]:
        """Yield the rows by the line that each begins in, from 1."""
        names: list[str] = []
        for number, values in self._records():
            where = f"{self.path.name}:{number}"
            if not names:
                names = values
                if len(set(names)) < len(names) or "" in names:
                    raise ConfigError(where, f"{len(names)} columns", "must be a header of distinct column names")
            elif len(values) != len(names):
                raise ConfigError(where, f"{len(values)} values", f"must have {len(names)}, as the header has")
            else:
                yield Row(where, dict(zip(names, values, strict=True)))

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the number of the first line, and the values, of each record that is not empty."""
        csv.field_size_limit(MOST)
        dialect = "excel-tab" if self.path.suffix.lower() == ".tsv" else "excel"
        with self.path.open("rb") as stream:
            lines = (line.decode("utf-8-sig" if n == 0 else "utf-8") for n, line in enumerate(stream))
            reader = csv.reader(lines, dialect, strict=True)
            while True:
                first = reader.line_num + 1
                try:
                    values = next(reader, None)
                except (csv.Error, UnicodeDecodeError) as error:
                    rule = f"must be a record in UTF-8, quoted well: {type(error).__name__}"
                    raise ConfigError(f"{self.path.name}:{first}", "a record", rule) from None
                if values is None:
                    return
                if values:
                    yield first, values
