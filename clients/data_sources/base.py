"""Rows, and the contract of what they come from."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcompress.errors import ConfigError

_PLAIN = re.compile(r"[A-Za-z_][\w.-]{0,39}")
_MOST = 16  # names in a message


def describe_columns(names: Iterable[object]) -> str:
    """Names of columns for a message, or their number where they may be content, as of a file without a header."""
    found = sorted(str(name) for name in names)
    if not all(_PLAIN.fullmatch(name) for name in found):
        return f"{len(found)} columns, which are not named as columns are"
    more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return f"{found[:_MOST]}{more}"


@dataclass(frozen=True)
class Row:
    """One row, and where it is: ``file:line``, or ``file:row`` of what has no lines."""

    where: str
    values: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """A field.

        Raises:
            ConfigError: there is none.
        """
        if key not in self.values:
            raise ConfigError(
                self.where, f"a row without {key!r}", f"must have it: it has {describe_columns(self.values)}"
            )
        return self.values[key]

    def text(self, key: str) -> str:
        """A field that is text.

        Raises:
            ConfigError: there is none, or it is something else.
        """
        value = self.get(key)
        if not isinstance(value, str):
            raise ConfigError(f"{self.where}.{key}", type(value).__name__, "must be a string")
        return value


@dataclass(frozen=True)
class Source(ABC):
    """A source of rows.

    Args:
        text: as in site.toml, a path being absolute.
        part: ``train`` or ``heldout``.
    """

    text: str
    part: str

    @property
    def field(self) -> str:
        """What messages about the whole source start with."""
        return f"data.{self.part}"

    @property
    def path(self) -> Path:
        """Of a file or folder."""
        return Path(self.text)

    def check(self) -> None:
        """Whether it is there; cheap, without reading it.

        Raises:
            ConfigError: there is no such file.
        """
        if not self.path.is_file():
            raise ConfigError(self.field, self.path, "must be an existing file")

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """All rows, in order.

        Raises:
            ConfigError: the source cannot be read, or a row is malformed; says where, not what is in it.
            MissingPackageError: what reads it is absent.
        """

    def size(self) -> int:
        """Bytes, 0 where nobody knows."""
        return self.path.stat().st_size

    def stamp(self) -> str:
        """Text that changes when the rows may have; empty where nobody can know."""
        facts = self.path.stat()
        return f"{self.path}/{facts.st_size}/{facts.st_mtime_ns}"
