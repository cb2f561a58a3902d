"""CSV and TSV files, with a header, are read by Python's csv module."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence

from clients.data_sources.base import DataSource, Row
from fedcompress.errors import ConfigError

MOST = 1 << 26  # bytes of a field; Python's own limit is 128 KiB
_QUOTED = re.compile(r'"[^"]*"')
SEPARATORS = ",;\t|"  # looked for in a header, the likeliest first
_TOLD = "sep="  # what spreadsheets write into a line of its own before the header
_OTHER_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}  # by the first bytes of a file


class Separated(DataSource):
    """Reads values with column names in the first line, in UTF-8, separated as the header is.

    That is by commas, and else by semicolons, tabs or bars, whichever are there most often; ``delimiter`` in site.toml
    says it where the header does not. All values are text. Quotes and line ends within quotes are as RFC 4180 has them.
    A column without a name, as pandas writes for its index, is named as pandas names it when it reads: ``Unnamed: 0``.
    """

    def rows(self) -> Iterator[Row]:
        """Yield the rows by the line that each begins in, from 1."""
        names: list[str] = []
        for number, values in self._records():
            where = f"{self.path.name}:{number}"
            if not names:
                names = _name_columns(values, where)
            elif len(values) != len(names):
                raise ConfigError(where, f"{len(values)} values", f"must have {len(names)}, as the header has")
            else:
                yield Row(where, dict(zip(names, values, strict=True)))

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the number of the first line, and the values, of each record that is not empty."""
        csv.field_size_limit(MOST)
        with self.path.open("rb") as stream:
            start = stream.readline()
            if (name := _OTHER_ENCODINGS.get(start[:2])) is not None:
                raise ConfigError(self.path.name, name, "must be UTF-8: save it so, as `CSV UTF-8` in a spreadsheet")
            told = _read_told(start)
            skipped = int(bool(told))
            stream.seek(len(start) if told else 0)
            header = next((line for line in stream if line.strip()), b"")
            stream.seek(len(start) if told else 0)
            delimiter = self.delimiter or told or self._find_delimiter(header)
            lines = (line.decode("utf-8-sig" if n == 0 else "utf-8") for n, line in enumerate(stream))
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            while True:
                first = reader.line_num + 1 + skipped
                try:
                    values = next(reader, None)
                except UnicodeDecodeError:
                    rule = "must be in UTF-8: save the file as `CSV UTF-8`"
                    raise ConfigError(f"{self.path.name}:{first}", "a record", rule) from None
                except csv.Error as error:
                    rule = f"must be a record in UTF-8, quoted well: {type(error).__name__}"
                    raise ConfigError(f"{self.path.name}:{first}", "a record", rule) from None
                if values is None:
                    return
                if any(value.strip() for value in values):
                    yield first, values

    def _find_delimiter(self, header: bytes) -> str:
        """Find what separates the names in a header, outside of quotes: the likeliest that is there.

        That is a comma, or a tab in a ``.tsv``; and else what is there most often.
        """
        text = _QUOTED.sub("", header.decode("utf-8-sig", errors="replace"))
        likeliest = "\t" if self.path.suffix.lower() == ".tsv" else ","
        return likeliest if likeliest in text else max(SEPARATORS, key=text.count)


def _read_told(start: bytes) -> str:
    """Read what a first line ``sep=;`` of a spreadsheet says; empty if it is another line."""
    text = start.decode("utf-8-sig", errors="replace").rstrip("\r\n").strip('"')
    told = text[len(_TOLD) :] if text.lower().startswith(_TOLD) else ""
    return told if len(told) == 1 else ""


def _name_columns(values: Sequence[str], where: str) -> list[str]:
    """Return the names of the columns: as the header has them; those without one by number.

    Raises:
        ConfigError: two columns have the same name.
    """
    names = [value if value.strip() else f"Unnamed: {number}" for number, value in enumerate(values)]
    twice = [str(number) for number, name in enumerate(names, start=1) if names.count(name) > 1]
    if twice:
        rule = f"must be a header of distinct column names: columns {', '.join(twice)} repeat one"
        raise ConfigError(where, f"{len(names)} columns", rule)
    return names
