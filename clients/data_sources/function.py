"""Rows may come from a Python function of the site's own."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from clients.data_sources.base import DataSource, Row
from fedcompress.errors import ConfigError


class Function(DataSource):
    """Calls ``package.module:function`` with the part's name; the function yields mappings from field names.

    The function may have an attribute ``version``; while that is equal, its rows are taken to be the same.
    """

    def check(self) -> None:
        """Check nothing: the module is not imported before its rows are wanted."""

    def _function(self) -> Any:
        """Import the module and return its function."""
        module, _, name = self.text.partition(":")
        try:
            function = getattr(importlib.import_module(module), name, None)
        except Exception as error:  # whatever the module does when it is imported
            rule = f"must be of a module that can be imported: {type(error).__name__}"
            raise ConfigError(self.field, self.text, rule) from error
        if not callable(function):
            raise ConfigError(self.field, self.text, f"must be a function of {module}")
        return function

    def rows(self) -> Iterator[Row]:
        """Yield what the function yields, by its number from 1."""
        function = self._function()
        number = 0
        try:
            for number, values in enumerate(function(self.part), start=1):
                where = f"{self.text}:{number}"
                if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
                    raise ConfigError(where, type(values).__name__, "must be a mapping from names")
                yield Row(where, values)
        except ConfigError:
            raise
        except Exception as error:  # its text may hold a row
            rule = f"failed after row {number}: {type(error).__name__}"
            raise ConfigError(self.field, self.text, rule) from None

    def size(self) -> int:
        """Return 0: nobody knows."""
        return 0

    def stamp(self) -> str:
        """Return the function's version; empty if it has none."""
        version = getattr(self._function(), "version", None)
        return "" if version is None else f"{self.text}/{version!r}"
