"""A grid runs the demo for every combination of options in a TOML file; it can be stopped and resumed.

Cells that have a result are not run again. A file has options with one value and options with several:

[fixed]
rounds = 5

[grid]
codec = ["none", "lora-transform"]
seed = [0, 1, 2]
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fedcompress.demo.run import DemoOptions, run_demo
from fedcompress.errors import ConfigError, one_of


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid has options that are fixed and options with a list of values; every combination is checked at once.

    Args:
        fixed: options of ``DemoOptions`` by name.
        grid: options of ``DemoOptions`` by name, each with at least one value.
    """

    fixed: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = {f.name: type(f.default) for f in fields(DemoOptions) if f.name not in ("out", "port")}
        for section in ("fixed", "grid"):
            if not isinstance(getattr(self, section), Mapping):
                raise ConfigError(section, getattr(self, section), "must be a table")
            for name in getattr(self, section):
                if name not in kinds:
                    raise ConfigError(f"{section}.{name}", name, f"unknown option: {one_of(sorted(kinds), name)}")
        for name, values in self.grid.items():
            if not isinstance(values, list) or not values:
                raise ConfigError(f"grid.{name}", values, "must be a list with at least one value")
        for cell in self.cells():
            for name, value in cell.items():
                if type(value) is not kinds[name]:
                    raise ConfigError(name, repr(value), f"must be of type {kinds[name].__name__}")
            DemoOptions(out=Path(), **cell)

    @classmethod
    def load(cls, path: Path) -> Grid:
        """Read a grid file.

        Raises:
            ConfigError: the file is unreadable, has an unknown section or option, or a combination is out of range.
        """
        try:
            raw = tomllib.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError("GRID", path, f"must be a readable TOML file: {error}") from error
        if unknown := sorted(set(raw) - {"fixed", "grid"}):
            raise ConfigError("GRID", unknown, "unknown section: must be [fixed] or [grid]")
        return cls(**raw)

    def cells(self) -> list[dict[str, Any]]:
        """List all combinations as options by name; the last option varies fastest."""
        names = list(self.grid)
        return [
            {**self.fixed, **dict(zip(names, values, strict=True))}
            for values in itertools.product(*(self.grid[n] for n in names))
        ]


def cell_name(cell: Mapping[str, Any]) -> str:
    """Return a folder name for a cell that depends on nothing but its options."""
    text = json.dumps(cell, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_grid(grid: Grid, out: Path, on_cell: Callable[[int, int, dict[str, Any]], None]) -> list[dict[str, Any]]:
    """Run every cell that has no result yet, one after the other; write ``results.json``.

    Args:
        grid: what to run.
        out: gets a folder for each cell, and ``results.json``.
        on_cell: called after each cell with its number, from 1, the number of cells, and its result.

    Returns:
        The results in the order of the cells, each with its ``options``.
    """
    cells = grid.cells()
    results = []
    for number, cell in enumerate(cells, start=1):
        folder = out / cell_name(cell)
        result_file = folder / "result.json"
        if result_file.is_file():
            result = json.loads(result_file.read_text())
        else:
            result = run_demo(DemoOptions(out=folder, **cell), lambda event: None)
        results.append({"options": cell, **result})
        on_cell(number, len(cells), results[-1])
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    return results
