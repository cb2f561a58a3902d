"""Parquet files are read by pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from clients.data_sources.base import DataSource, Row
from fedcompress.errors import ConfigError, MissingPackageError

BATCH = 1024  # rows that are in memory at a time


class Parquet(DataSource):
    """Reads a parquet file, of which one batch of rows is in memory at a time."""

    def rows(self) -> Iterator[Row]:
        """Yield the rows by their number, from 1."""
        number = 0
        for batch in self._batches():
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{self.path.name}:{number}", values)

    def _batches(self) -> Iterator[Any]:
        """Yield the file's rows as ``pyarrow.RecordBatch``, each of ``BATCH`` at most."""
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise MissingPackageError("package pyarrow: is absent: pip install 'fedcompress[data]'") from error
        try:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                yield from file.iter_batches(batch_size=BATCH)
        except (pyarrow.ArrowException, OSError) as error:
            rule = f"must be a parquet file: {type(error).__name__}"
            raise ConfigError(self.field, self.path, rule) from None
