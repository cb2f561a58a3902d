"""Updates of several sites that can be read in parts, from memory or from files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fedcompress.errors import StateError
from fedcompress.types import Array, Layout

THREADS = min(os.cpu_count() or 1, 8)  # threads that merge blocks at the same time
BLOCK = 1 << 19  # entries that are merged at a time, counted over all sites together
MIN_BLOCK = 4096  # entries of a block at least, for any number of sites


class Updates(Protocol):
    """The contract of a source of updates: several sites in a fixed order, all with one layout."""

    @property
    def layout(self) -> Layout:
        """Return the layout that every update has."""
        ...

    @property
    def count(self) -> int:
        """Return the number of sites."""
        ...

    def read(self, site: int, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Read entries of one tensor of one site.

        Args:
            site: number of the site, from 0.
            name: name of the tensor.
            start: index of the first entry in the flat tensor.
            stop: index behind the last entry; the end of the tensor if left out or beyond it.

        Returns:
            Shape (stop - start,), float32. It may be a view of the source, so it must not be written to.
        """
        ...


def read_entries(tensors: Mapping[str, Array], name: str, start: int, stop: int | None = None) -> Array:
    """Read flat entries of a tensor, without reading the rest of it where the tensors lie in a file.

    Args:
        tensors: by name, float32. A mapping with a method ``flat(name, start, stop)`` is asked for the entries alone.
        name: name of the tensor.
        start: index of the first entry.
        stop: index behind the last entry; the end of the tensor if left out.

    Returns:
        Shape (stop - start,), float32.
    """
    flat = getattr(tensors, "flat", None)
    if flat is not None and stop is not None:
        return np.asarray(flat(name, start, stop), np.float32)
    return tensors[name].reshape(-1)[start:stop]


class InMemoryUpdates:
    """Holds the tensors of all sites, in memory or as mappings that read from a file when they are used."""

    def __init__(self, layout: Layout, tensors: Sequence[Mapping[str, Array]]) -> None:
        """Raise ``LayoutError`` or ``NonFiniteError`` unless the tensors of every site have the layout."""
        for update in tensors:
            layout.check(update, what="merge")
        self.layout = layout
        self._tensors = tensors

    @property
    def count(self) -> int:
        """Return the number of sites."""
        return len(self._tensors)

    def read(self, site: int, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Return a view of the entries, or a copy of them where the tensors lie in a file."""
        return read_entries(self._tensors[site], name, start, stop)


@dataclass(frozen=True)
class UpdateSubset:
    """Shows some tensors of other updates, so that a rule can be run on these alone."""

    layout: Layout
    updates: Updates

    @property
    def count(self) -> int:
        """Return the number of sites."""
        return self.updates.count

    def read(self, site: int, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Read the entries from the other updates."""
        return self.updates.read(site, name, start, stop)


class UpdateFiles:
    """Keeps updates as raw float32 files in a folder, so that only what is read is in memory.

    A file has its final name only once it is complete, so that a folder left behind by a crash can be used again.
    """

    def __init__(self, folder: Path, layout: Layout, names: Sequence[str]) -> None:
        """Look at a folder of updates; it need not exist yet.

        Args:
            folder: where the files are.
            layout: the layout of every update.
            names: names of the files in the order of the sites; ``add`` writes those that are missing.
        """
        self.layout = layout
        self._folder = folder
        self._names = list(names)
        sizes = [t.numel for t in layout.tensors]
        self._starts = dict(zip((t.name for t in layout.tensors), np.cumsum([0, *sizes]).tolist(), strict=False))
        self._sizes = {t.name: t.numel for t in layout.tensors}

    @property
    def count(self) -> int:
        """Return the number of sites."""
        return len(self._names)

    def has(self, name: str) -> bool:
        """Return whether the file of an update exists and is complete."""
        path = self._folder / name
        return path.is_file() and path.stat().st_size == 4 * self.layout.numel

    def add(self, name: str, tensors: Mapping[str, Array]) -> None:
        """Write the file of one update.

        Raises:
            LayoutError: the tensors do not have the layout.
            NonFiniteError: a value is NaN or infinite.
        """
        self.layout.check(tensors, what="merge")
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f"{name}.part"
        with part.open("wb") as stream:
            for spec in self.layout.tensors:
                stream.write(np.ascontiguousarray(tensors[spec.name], "<f4").data)
        os.replace(part, self._folder / name)

    def read(self, site: int, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Read the entries from the site's file.

        Raises:
            StateError: the file is shorter than its layout.
        """
        end = self._sizes[name] if stop is None else min(stop, self._sizes[name])
        path = self._folder / self._names[site]
        values = np.fromfile(path, "<f4", count=end - start, offset=4 * (self._starts[name] + start))
        if values.size != end - start:
            raise StateError(f"{path}: {name}: {values.size} of {end - start} entries")
        return values.astype(np.float32, copy=False)


def block_size(sites: int) -> int:
    """Return how many entries of a tensor are merged at a time, so that the block of all sites stays in a cache."""
    return max(BLOCK // max(sites, 1), MIN_BLOCK)


def list_blocks(layout: Layout, sites: int) -> list[tuple[str, int, int]]:
    """List the blocks of a layout as (name of the tensor, first entry, entry behind the last), in layout order."""
    size = block_size(sites)
    blocks = []
    for spec in layout.tensors:
        blocks += [(spec.name, start, min(start + size, spec.numel)) for start in range(0, spec.numel, size)]
    return blocks


def read_block(updates: Updates, name: str, start: int, stop: int) -> Array:
    """Read the same entries of all sites.

    Args:
        updates: the updates of all sites.
        name: name of the tensor.
        start: index of the first entry.
        stop: index behind the last entry.

    Returns:
        Shape (sites, stop - start), float32; a copy.
    """
    return np.stack([updates.read(site, name, start, stop) for site in range(updates.count)])
