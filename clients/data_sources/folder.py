"""A folder that ``Dataset.save_to_disk`` wrote is read by the package datasets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clients.data_sources.base import DataSource, Row
from fedcompress.errors import ConfigError, MissingPackageError

ONE = "state.json"  # file by which save_to_disk marks the folder of a Dataset
MANY = "dataset_dict.json"  # file by which it marks that of a DatasetDict; has the names of the splits


def import_datasets() -> Any:
    """Import and return the package datasets.

    Raises:
        MissingPackageError: it is absent.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingPackageError("package datasets: is absent: pip install 'fedcompress[data]'") from error
    return datasets


def read_dataset_rows(dataset: Any, name: str) -> Iterator[Row]:
    """Yield the rows of a ``Dataset`` by their number, from 1; class labels are replaced by their names."""
    kind = import_datasets().ClassLabel
    classes = {key: feature for key, feature in dataset.features.items() if isinstance(feature, kind)}
    for number, values in enumerate(dataset, start=1):
        labels = {}
        for key, feature in classes.items():
            label = values[key]
            if label is not None and label >= 0:  # -1 is how a hub data set writes that the label is not known
                labels[key] = feature.int2str(label)
        yield Row(f"{name}:{number}", {**values, **labels})


class Folder(DataSource):
    """Reads a saved ``Dataset``, or of a saved ``DatasetDict`` the split after a colon: ``folder:split``."""

    def _split_text(self) -> tuple[Path, str]:
        """Return folder and split; the split is empty where the text names none."""
        if self.path.is_dir():
            return self.path, ""
        head, colon, split = self.text.rpartition(":")
        return (Path(head), split) if colon and Path(head).is_dir() else (self.path, "")

    def check(self) -> None:
        """Check that the folder is one that ``save_to_disk`` wrote, and has the split."""
        folder, split = self._split_text()
        if (folder / MANY).is_file():
            splits = self._splits(folder)
            if not split and splits != [self.part]:
                raise ConfigError(self.field, self.text, f"must name a split of {splits}, as folder:split")
            if split and split not in splits:
                raise ConfigError(self.field, self.text, f"must name one of the splits {splits}")
        elif split or not (folder / ONE).is_file():
            rule = (
                "must be an existing file that ends in .jsonl, .csv, .tsv or .parquet, a folder that save_to_disk "
                "wrote, hf:organisation/name, or package.module:function"
            )
            raise ConfigError(self.field, self.text, rule)

    def _splits(self, folder: Path) -> list[str]:
        try:
            splits = json.loads((folder / MANY).read_text(encoding="utf-8"))["splits"]
            return [str(name) for name in splits]
        except (OSError, ValueError, KeyError, TypeError) as error:
            rule = f"must be a data set that save_to_disk wrote: {type(error).__name__}"
            raise ConfigError(self.field, folder / MANY, rule) from None

    def _dataset_folder(self) -> Path:
        """Return the folder of the ``Dataset`` itself."""
        folder, split = self._split_text()
        return folder / (split or self.part) if (folder / MANY).is_file() else folder

    def rows(self) -> Iterator[Row]:
        """Yield the rows, which stay on disk until they are asked for."""
        datasets = import_datasets()
        folder = self._dataset_folder()
        try:
            dataset = datasets.load_from_disk(str(folder))
        except (OSError, ValueError, KeyError) as error:
            rule = f"must be a data set that save_to_disk wrote: {type(error).__name__}"
            raise ConfigError(self.field, self.text, rule) from None
        yield from read_dataset_rows(dataset, folder.name)

    def _files(self) -> list[Path]:
        return sorted(p for p in self._dataset_folder().rglob("*") if p.is_file())

    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(p.stat().st_size for p in self._files())

    def stamp(self) -> str:
        """Return names, sizes and times of all files."""
        files = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in self._files()]
        return f"{self._dataset_folder()}/{files}"
