"""A source gives the rows of a site: there is one class for each kind, chosen by how the source is written.

``base`` has the contract. A source is written in site.toml as a file, a folder, ``hf:organisation/name`` or
``package.module:function``; no key names its kind.
"""

from __future__ import annotations

import re
from pathlib import Path

from clients.data_sources.base import DataSource, Row
from clients.data_sources.folder import Folder
from clients.data_sources.function import Function
from clients.data_sources.hub import PREFIX, Hub
from clients.data_sources.jsonl import JsonLines
from clients.data_sources.parquet import Parquet
from clients.data_sources.separated import Separated

__all__ = ["ENDINGS", "SOURCES", "Row", "DataSource", "make_absolute", "parse_kind", "parse_source"]

# classes by kind
SOURCES: dict[str, type[DataSource]] = {
    "jsonl": JsonLines,
    "csv": Separated,
    "parquet": Parquet,
    "folder": Folder,
    "hub": Hub,
    "function": Function,
}
# kinds of files, by ending
ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def parse_kind(text: str) -> str:
    """Return the kind of a source, a key of ``SOURCES``: by prefix, by ending, by form, and else a folder."""
    if text.startswith(PREFIX):
        return "hub"
    ending = Path(text).suffix.lower()
    if ending in ENDINGS:
        return ENDINGS[ending]
    return "function" if _FUNCTION.fullmatch(text) else "folder"


def make_absolute(text: str, base: Path) -> str:
    """Return a source as site.toml has it, with a path made absolute from the folder ``base``."""
    return text if parse_kind(text) in ("hub", "function") else str(base / text)


def parse_source(text: str, part: str, delimiter: str = "") -> DataSource:
    """Return the source of a part, ``train`` or ``heldout``; nothing is opened yet.

    Args:
        text: as site.toml has it.
        part: ``train`` or ``heldout``.
        delimiter: what separates the values of a CSV file; empty: it is found from the header.

    Returns:
        The source.
    """
    return SOURCES[parse_kind(text)](text, part, delimiter)
