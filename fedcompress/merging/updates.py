"""What sites sent, readable in parts: from memory, or from files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fedcompress.errors import StateError
from fedcompress.types import Array, Layout

THREADS = min(os.cpu_count() or 1, 8)
BLOCK = 1 << 19  # entries of all sites together that are merged at a time


class Updates(Protocol):
    """Updates of several sites, all of one layout, in a fixed order of sites."""

    @property
    def layout(self) -> Layout:
        """Of every update."""
        ...

    @property
    def count(self) -> int:
        """How many sites."""
        ...

    def read(self, site: int, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Flat entries of a tensor, float32; not to be written to."""
        ...


def read_entries(tensors: Mapping[str, Array], name: str, start: int, stop: int | None = None) -> Array:
    """Flat entries of a tensor; of tensors that read themselves from a file, no more than those."""
    flat = getattr(tensors, "flat", None)
    if flat is not None and stop is not None:
        return np.asarray(flat(name, start, stop), np.float32)
    return tensors[name].reshape(-1)[start:stop]


class InMemoryUpdates:
    """Updates as tensors, in memory or read from a file when they are used."""

    def __init__(self, layout: Layout, tensors: Sequence[Mapping[str, Array]]) -> None:
        for one in tensors:
            layout.check(one, what="merge")
        self.layout = layout
        self._tensors = tensors

    @property
    def count(self) -> int:
        """How many sites."""
        return len(self._tensors)

    def read(self, site: int, name: str, start: int = 0, stop: int | None = None) -> Array:
        """A view, or what was read."""
        return read_entries(self._tensors[site], name, start, stop)


@dataclass(frozen=True)
class UpdateSubset:
    """Some tensors of other updates."""

    layout: Layout
    updates: Updates

    @property
    def count(self) -> int:
        """How many sites."""
        return self.updates.count

    def read(self, site: int, name: str, start: int = 0, stop: int | None = None) -> Array:
        """As the others have it."""
        return self.updates.read(site, name, start, stop)


class UpdateFiles:
    """Updates as raw float32 files in a folder: one update at a time is in memory.

    A file is complete once it has its name, so that a folder that was left behind can be used again.
    """

    def __init__(self, folder: Path, layout: Layout, names: Sequence[str]) -> None:
        """``names`` are the files, in the order of sites; ``add`` writes those that are missing."""
        self.layout = layout
        self._folder = folder
        self._names = list(names)
        sizes = [t.numel for t in layout.tensors]
        self._starts = dict(zip((t.name for t in layout.tensors), np.cumsum([0, *sizes]).tolist(), strict=False))
        self._sizes = {t.name: t.numel for t in layout.tensors}

    @property
    def count(self) -> int:
        """How many sites."""
        return len(self._names)

    def has(self, name: str) -> bool:
        """Whether an update was written, whole."""
        path = self._folder / name
        return path.is_file() and path.stat().st_size == 4 * self.layout.numel

    def add(self, name: str, tensors: Mapping[str, Array]) -> None:
        """Write one update.

        Raises:
            LayoutError: it does not have the layout.
        """
        self.layout.check(tensors, what="merge")
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f"{name}.part"
        with part.open("wb") as stream:
            for spec in self.layout.tensors:
                stream.write(np.ascontiguousarray(tensors[spec.name], "<f4").data)
        os.replace(part, self._folder / name)

    def read(self, site: int, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Read from the file.

        Raises:
            StateError: the file is shorter than its layout.
        """
        end = self._sizes[name] if stop is None else min(stop, self._sizes[name])
        path = self._folder / self._names[site]
        found = np.fromfile(path, "<f4", count=end - start, offset=4 * (self._starts[name] + start))
        if found.size != end - start:
            raise StateError(f"{path}: {name}: {found.size} of {end - start} entries")
        return found.astype(np.float32, copy=False)


def block_size(sites: int) -> int:
    """Entries of a tensor that are merged at a time, so that the block of all sites stays in a cache."""
    return max(BLOCK // max(sites, 1), 4096)


def read_update(updates: Updates, site: int) -> dict[str, Array]:
    """One update in memory."""
    return {t.name: updates.read(site, t.name).reshape(t.shape) for t in updates.layout.tensors}


def list_blocks(layout: Layout, sites: int) -> list[tuple[str, int, int]]:
    """Name, start and stop of all blocks."""
    out, size = [], block_size(sites)
    for spec in layout.tensors:
        out += [(spec.name, at, min(at + size, spec.numel)) for at in range(0, spec.numel, size)]
    return out
