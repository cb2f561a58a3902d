"""CSV and TSV files, with a header, are read by Python's csv module."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence

from clients.data_sources.base import DataSource, Row
from fedcompress.errors import ConfigError

MOST = 1 << 26  # bytes of a field; Python's own limit is 128 KiB
SEPARATORS = ",;\t|"  # looked for in a header, the likeliest first
_TOLD = "sep="  # what spreadsheets write into a line of its own before the header
_OTHER_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}  # by the first bytes of a file


class Separated(DataSource):
    """Reads values with column names in the first line, in UTF-8, separated as the header is.

    That is by commas, and else by semicolons, tabs or bars, whichever make the most columns; ``delimiter`` in site.toml
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
            delimiter, skipped = self._find_delimiter(start)
            if not skipped:
                stream.seek(0)
            header = stream.readline() if skipped else start
            stream.seek(len(start) if skipped else 0)
            is_spaced = _is_spaced(header, delimiter)
            lines = (line.decode("utf-8-sig" if n == 0 else "utf-8") for n, line in enumerate(stream))
            reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=is_spaced)
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
                if values:
                    yield first, values

    def _find_delimiter(self, start: bytes) -> tuple[str, int]:
        """Find what separates the values, and how many lines before the header say so.

        Args:
            start: the first line of the file.
        """
        text = start.decode("utf-8-sig", errors="replace").rstrip("\r\n")
        unquoted = text.strip('"')
        told = unquoted[len(_TOLD) :] if unquoted.lower().startswith(_TOLD) else ""
        skipped = int(len(told) == 1)
        if self.delimiter:
            return self.delimiter, skipped
        if skipped:
            return told, skipped
        if self.path.suffix.lower() == ".tsv":
            return "\t", 0
        if _count_columns(text, ",") > 1:
            return ",", 0
        return max(SEPARATORS, key=lambda separator: _count_columns(text, separator)), 0


def _count_columns(header: str, separator: str) -> int:
    """Return how many columns a header has with a separator; 1 where it is not quoted well."""
    try:
        return len(next(csv.reader([header], delimiter=separator, strict=True), [""]))
    except csv.Error:
        return 1


def _is_spaced(header: bytes, delimiter: str) -> bool:
    """Return True if each separator of a header is followed by a blank, which then belongs to no value."""
    parts = header.decode("utf-8-sig", errors="replace").split(delimiter)[1:]
    return bool(parts) and delimiter != "\t" and all(part.startswith(" ") for part in parts)


def _name_columns(values: Sequence[str], where: str) -> list[str]:
    """Return the names of the columns: as the header has them, without blanks around; those without one by number.

    Raises:
        ConfigError: two columns have the same name.
    """
    names = [value.strip() or f"Unnamed: {number}" for number, value in enumerate(values)]
    twice = [str(number) for number, name in enumerate(names, start=1) if names.count(name) > 1]
    if twice:
        rule = f"must be a header of distinct column names: columns {', '.join(twice)} repeat one"
        raise ConfigError(where, f"{len(names)} columns", rule)
    return names
