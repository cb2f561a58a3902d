"""A data set of the Hugging Face hub is a source; nothing is fetched unless site.toml names it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from clients.data_sources.base import DataSource, Row
from clients.data_sources.folder import import_datasets, read_dataset_rows
from fedcompress.errors import ConfigError

PREFIX = "hf:"  # of a source on the hub
_FORM = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(/(?P<subset>[\w.-]+))?(:(?P<split>[\w.\[\]:%+-]+))?")


@lru_cache(maxsize=2)
def _loaded(text: str) -> Any:
    """Return a data set, which is opened once: each time asks the hub whether there is a newer one."""
    datasets = import_datasets()
    parts = _FORM.fullmatch(text)
    assert parts is not None
    return datasets.load_dataset(parts["name"], parts["subset"], split=parts["split"] or "train")


class Hub(DataSource):
    """Reads ``hf:organisation/name``, with ``/subset`` and ``:split`` where the data set has several.

    Without ``:split`` the split is train.
    """

    def check(self) -> None:
        """Check only how the source is written."""
        if not _FORM.fullmatch(self.text):
            raise ConfigError(self.field, self.text, "must be hf:organisation/name, /subset and :split being optional")

    @property
    def _dataset(self) -> Any:
        self.check()
        try:
            return _loaded(self.text)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            rule = f"must be a data set of the hub, or of its cache, that can be had: {type(error).__name__}"
            raise ConfigError(self.field, self.text, rule) from error

    def rows(self) -> Iterator[Row]:
        """Yield the rows, which stay on disk until they are asked for."""
        yield from read_dataset_rows(self._dataset, self.text)

    def size(self) -> int:
        """Return the bytes of the data set in memory."""
        return int(self._dataset.data.nbytes)

    def stamp(self) -> str:
        """Return the fingerprint that ``datasets`` keeps."""
        return f"{self.text}/{getattr(self._dataset, '_fingerprint', '')}"
