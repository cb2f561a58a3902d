"""Which run an argument means, where a state directory has several."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fedcompress.adapters import load_adapter
from fedcompress.errors import ConfigError
from server.commands import export, history, status, stop
from server.ledger.reader import LedgerReader
from server.runs import find_run, save_settings, template_copy_path
from server.settings import load_settings
from tests.unit.server.commands.world import config_file
from tests.unit.server.memory import World


@pytest.fixture
def two_runs(tmp_path: Path) -> tuple[World, dict[str, Path]]:
    """Two runs of one state directory, of four rounds and of two; the second was started last."""
    world, files = World(tmp_path), {}
    for name, rounds in (("first", 4), ("second", 2)):
        world.run(run=name, rounds=rounds)
        file = config_file(world, run=name, rounds=rounds)
        files[name] = file.rename(file.with_name(f"{name}.toml"))
        folder = tmp_path / "coordinator"
        save_settings(folder, load_settings(files[name]).to_dict(files[name]))
        kept = template_copy_path(folder, name)
        shutil.copytree(tmp_path / "initial", kept)
    return world, files


def test_a_config_file_means_its_own_run(two_runs: tuple[World, dict[str, Path]], tmp_path: Path) -> None:
    _, files = two_runs
    folder = tmp_path / "coordinator"
    assert find_run(str(files["first"])) == (folder, "first")
    assert find_run(str(files["second"])) == (folder, "second")
    assert find_run(str(folder)) == (folder, "second"), "a directory means the last that was started"
    assert find_run(str(files["second"]), "first") == (folder, "first"), "a name that is given counts more"


def test_every_command_takes_it_so(
    two_runs: tuple[World, dict[str, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, files = two_runs

    def said(code: int) -> dict[str, object]:
        assert code in (0, 1)
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return found

    for name, rounds in (("first", 4), ("second", 2)):
        state = str(files[name])
        assert said(status.run(status.Options(state=state, as_json=True)))["run"] == name
        listed = said(history.run(history.Options(state=state, as_json=True)))
        assert (listed["run"], len(listed["rounds"])) == (name, rounds)  # type: ignore[arg-type]
        assert said(stop.run(stop.Options(state=state, as_json=True)))["run"] == name
        out = tmp_path / f"adapter-{name}"
        done = said(export.run(export.Options(state=state, out=str(out), as_json=True)))
        assert (done["run"], done["version"]) == (name, rounds)
        with LedgerReader(tmp_path / "coordinator") as reader:
            assert done["digest"] == reader.versions(name)[-1].digest
    first, second = (load_adapter(tmp_path / f"adapter-{name}").tensors for name in files)
    assert any((first[name] != second[name]).any() for name in first)


def test_a_config_of_a_run_that_has_not_begun_is_refused(two_runs: tuple[World, dict[str, Path]]) -> None:
    world, _ = two_runs
    file = config_file(world, run="third")
    with pytest.raises(ConfigError, match=r"CONFIG: .*run third: has not begun: --run must be one of \['first', 'sec"):
        find_run(str(file))
