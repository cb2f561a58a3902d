"""The contract of a source, and the rows that it gives.

A source is checked without being read (``check``), read row by row (``rows``), and described for the store of its
tokens (``size``, ``stamp``). Messages say where a row is, and which fields it has; never what is in it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcompress.errors import ConfigError

_PLAIN = re.compile(r"[A-Za-z_][\w.-]{0,39}")  # names that are shown in a message
_MOST = 16  # how many of them are shown


def describe_columns(names: Iterable[object]) -> str:
    """Return names of columns for a message.

    It is their number where the names may be content, as of a file without a header.
    """
    columns = sorted(str(name) for name in names)
    if not all(_PLAIN.fullmatch(name) for name in columns):
        return f"{len(columns)} columns, which are not named as columns are"
    more = f" and {len(columns) - _MOST} more" if len(columns) > _MOST else ""
    return f"{columns[:_MOST]}{more}"


@dataclass(frozen=True)
class Row:
    """Holds one row, and where it is.

    Attributes:
        where: ``file:line``, or ``file:row`` of what has no lines.
        values: by the name of the field.
    """

    where: str
    values: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """Return a field.

        Raises:
            ConfigError: there is none.
        """
        if key not in self.values:
            raise ConfigError(
                self.where, f"a row without {key!r}", f"must have it: it has {describe_columns(self.values)}"
            )
        return self.values[key]

    def text(self, key: str) -> str:
        """Return a field that is text.

        Raises:
            ConfigError: there is none, or it is something else.
        """
        value = self.get(key)
        if not isinstance(value, str):
            raise ConfigError(f"{self.where}.{key}", type(value).__name__, "must be a string")
        return value


@dataclass(frozen=True)
class DataSource(ABC):
    """Gives the rows of one part of a site's data.

    Attributes:
        text: the source as in site.toml, a path being absolute.
        part: ``train`` or ``heldout``.
        delimiter: what separates the values of a CSV file; empty: it is found from the header.
    """

    text: str
    part: str
    delimiter: str = ""

    @property
    def field(self) -> str:
        """Return what messages about the whole source start with."""
        return f"data.{self.part}"

    @property
    def path(self) -> Path:
        """Return the path of a source that is a file or folder."""
        return Path(self.text)

    def check(self) -> None:
        """Check that the source is there; cheap, without reading it.

        Raises:
            ConfigError: there is no such file.
        """
        if not self.path.is_file():
            raise ConfigError(self.field, self.path, "must be an existing file")

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Yield all rows, in order.

        Raises:
            ConfigError: the source cannot be read, or a row is malformed; says where, not what is in it.
            MissingPackageError: a package that reads it is absent.
        """

    def size(self) -> int:
        """Return the bytes of the source, 0 where nobody knows."""
        return self.path.stat().st_size

    def stamp(self) -> str:
        """Return text that changes when the rows may have; empty where nobody can know."""
        status = self.path.stat()
        return f"{self.path}/{status.st_size}/{status.st_mtime_ns}"
