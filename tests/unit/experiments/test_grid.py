"""Grids: everything is checked before the first cell runs, and finished cells are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedcompress.demo.run import DemoOptions
from fedcompress.errors import ConfigError
from fedcompress.experiments import Grid, grid, run_grid
from fedcompress.experiments.grid import cell_name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fixed = 3", "fixed: 3: must be a table"),
        ('[fixed]\nrounds = "3"', "rounds: '3': must be of type int"),
        ("[fixed]\nrounds = true", "rounds: True: must be of type int"),
        ("[fixed]\nport = 1", r"fixed\.port: port: unknown option"),
        ("[grid]\nrounds = []", r"grid\.rounds: \[\]: must be a list with at least one value"),
        ('[grid]\ncodec = ["none", 8]', "codec: 8: must be of type str"),
        ('[grid]\ncodec = ["none", "zip"]', "--codec: zip: must be one of"),
        ("[grid]\nsites = [1, 9]", "--sites: 9: must be from 1 to 8"),
    ],
)
def test_the_last_cell_is_checked_before_the_first_one_runs(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        Grid.load(path)


def test_cells_vary_the_last_option_fastest() -> None:
    cells = Grid(fixed={"rounds": 2}, grid={"codec": ["none", "int8"], "seed": [0, 1]}).cells()
    assert [(c["codec"], c["seed"]) for c in cells] == [("none", 0), ("none", 1), ("int8", 0), ("int8", 1)]
    assert all(c["rounds"] == 2 for c in cells)
    assert Grid(fixed={"rounds": 2}).cells() == [{"rounds": 2}]


def test_a_cells_folder_depends_on_its_options_alone() -> None:
    assert cell_name({"seed": 1, "codec": "none"}) == cell_name({"codec": "none", "seed": 1})
    assert cell_name({"seed": 1}) != cell_name({"seed": 2})


def test_a_stopped_grid_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[int, Path]] = []

    def fake(options: DemoOptions, on_event: object) -> dict[str, Any]:
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append((options.seed, options.out))
        options.out.mkdir(parents=True)
        result = {"accuracy_end": options.seed / 10}
        (options.out / "result.json").write_text(json.dumps(result))
        return result

    monkeypatch.setattr(grid, "run_demo", fake)
    cells = Grid(grid={"seed": [0, 1, 2, 3]})
    with pytest.raises(KeyboardInterrupt):
        run_grid(cells, tmp_path, lambda *_: None)
    assert not (tmp_path / "results.json").exists()
    first, seen = list(ran), []
    ran.clear()
    results = run_grid(cells, tmp_path, lambda number, count, result: seen.append((number, count)))
    assert [seed for seed, _ in first] == [0, 1]
    assert [seed for seed, _ in ran] == [2, 3]
    assert len({out for _, out in first + ran}) == 4
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [(r["options"]["seed"], r["accuracy_end"]) for r in results] == [(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.3)]
    assert json.loads((tmp_path / "results.json").read_text()) == results
