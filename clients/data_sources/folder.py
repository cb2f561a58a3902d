"""A folder that ``Dataset.save_to_disk`` wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clients.data_sources.base import Row, Source
from fedcompress.errors import ConfigError, MissingPackageError

ONE, MANY = "state.json", "dataset_dict.json"  # what save_to_disk marks its folders with


def import_datasets() -> Any:
    """The package of that name.

    Raises:
        MissingPackageError: it is absent.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingPackageError("package datasets: is absent: pip install 'fedcompress[data]'") from error
    return datasets


def read_dataset_rows(dataset: Any, name: str) -> Iterator[Row]:
    """Rows by their number, from 1; class labels by their names."""
    kind = import_datasets().ClassLabel
    classes = {key: feature for key, feature in dataset.features.items() if isinstance(feature, kind)}
    for number, values in enumerate(dataset, start=1):
        # -1 is how a hub data set writes that the label is not known
        named = {k: f.int2str(values[k]) for k, f in classes.items() if values[k] is not None and values[k] >= 0}
        yield Row(f"{name}:{number}", {**values, **named})


class Folder(Source):
    """A saved ``Dataset``, or of a saved ``DatasetDict`` the split after a colon: ``folder:split``."""

    def _found(self) -> tuple[Path, str]:
        """Folder and split."""
        if self.path.is_dir():
            return self.path, ""
        head, colon, split = self.text.rpartition(":")
        return (Path(head), split) if colon and Path(head).is_dir() else (self.path, "")

    def check(self) -> None:
        """Whether the folder is one that ``save_to_disk`` wrote."""
        folder, split = self._found()
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
            found = json.loads((folder / MANY).read_text(encoding="utf-8"))["splits"]
            return [str(name) for name in found]
        except (OSError, ValueError, KeyError, TypeError) as error:
            rule = f"must be a data set that save_to_disk wrote: {type(error).__name__}"
            raise ConfigError(self.field, folder / MANY, rule) from None

    def _place(self) -> Path:
        folder, split = self._found()
        return folder / (split or self.part) if (folder / MANY).is_file() else folder

    def rows(self) -> Iterator[Row]:
        """Rows, which stay on disk until they are asked for."""
        datasets, place = import_datasets(), self._place()
        try:
            dataset = datasets.load_from_disk(str(place))
        except (OSError, ValueError, KeyError) as error:
            rule = f"must be a data set that save_to_disk wrote: {type(error).__name__}"
            raise ConfigError(self.field, self.text, rule) from None
        yield from read_dataset_rows(dataset, place.name)

    def _files(self) -> list[Path]:
        return sorted(p for p in self._place().rglob("*") if p.is_file())

    def size(self) -> int:
        """Bytes of all files."""
        return sum(p.stat().st_size for p in self._files())

    def stamp(self) -> str:
        """Sizes and times of all files."""
        facts = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in self._files()]
        return f"{self._place()}/{facts}"
