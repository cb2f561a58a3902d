"""A site's rows as they stand in its files: read, split, never sent. Errors say where a row is, not what is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.site import Data
from fedcompress.errors import ConfigError


@dataclass(frozen=True)
class Row:
    """One row, and where it is: ``file:line``."""

    where: str
    values: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """A field.

        Raises:
            ConfigError: there is none.
        """
        if key not in self.values:
            raise ConfigError(self.where, f"a row without {key!r}", f"must have it: it has {sorted(self.values)[:8]}")
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


def read_jsonl(path: Path) -> Iterator[Row]:
    """Rows of a JSONL file; empty lines are skipped.

    Raises:
        ConfigError: a line is not a JSON object in UTF-8.
    """
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            where = f"{path.name}:{number}"
            try:
                row = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                rule = f"must be a JSON object in UTF-8: {type(error).__name__}"
                raise ConfigError(where, f"{len(line)} bytes", rule) from None
            if not isinstance(row, dict):
                raise ConfigError(where, type(row).__name__, "must be a JSON object")
            yield Row(where, row)


def is_heldout(row: Row, share: float) -> bool:
    """Whether a row belongs to the held-out part, by 32 bits of a hash of its content: equal rows stay together."""
    text = json.dumps(dict(row.values), sort_keys=True, default=str)
    bits = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return bits < share * (1 << 32)


def rows_of(data: Data, part: str) -> Iterator[Row]:
    """Rows of ``train`` or ``heldout``; without a file for the second, both are cut from the first."""
    if data.heldout is not None:
        yield from read_jsonl(data.train if part == "train" else data.heldout)
        return
    for row in read_jsonl(data.train):
        if is_heldout(row, data.heldout_share) == (part == "heldout"):
            yield row
