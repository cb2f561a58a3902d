"""A Python function of the site's own."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from clients.data_sources.base import Row, Source
from fedcompress.errors import ConfigError


class Function(Source):
    """``package.module:function``, called with the part's name; it yields mappings.

    The function may have an attribute ``version``; while that is equal, its rows are taken to be.
    """

    def check(self) -> None:
        """Nothing: the module is not imported before its rows are wanted."""

    def _function(self) -> Any:
        module, _, name = self.text.partition(":")
        try:
            found = getattr(importlib.import_module(module), name, None)
        except Exception as error:  # whatever the module does when it is imported
            rule = f"must be of a module that can be imported: {type(error).__name__}"
            raise ConfigError(self.field, self.text, rule) from error
        if not callable(found):
            raise ConfigError(self.field, self.text, f"must be a function of {module}")
        return found

    def rows(self) -> Iterator[Row]:
        """What the function yields, by its number from 1."""
        function, number = self._function(), 0
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
        """Nobody knows."""
        return 0

    def stamp(self) -> str:
        """The function's version, if it has one."""
        version = getattr(self._function(), "version", None)
        return "" if version is None else f"{self.text}/{version!r}"
