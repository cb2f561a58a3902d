"""Every version that was published comes out again bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedcompress.adapters import load_adapter
from fedcompress.errors import ConfigError, MismatchError, StateError
from fedcompress.types import Tensors
from server.commands import export
from server.ledger.ledger import Ledger
from server.ledger.reader import LedgerReader
from server.ledger.state_replay import replay_version
from tests.support import equal
from tests.unit.server.commands.world import settled
from tests.unit.server.memory import World

CODECS = ["lora-ternary", "none", "int(bits=4)"]


@pytest.fixture(params=CODECS)
def ran(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[World, list[Tensors]]:
    """A world after four rounds, and the states as they were when they were published."""
    states: list[Tensors] = []
    original = Ledger.publish

    def publish(self: Ledger, version: int, *, state: Tensors, **fields: Any) -> None:
        states.append({name: value.copy() for name, value in state.items()})
        original(self, version, state=state, **fields)

    monkeypatch.setattr(Ledger, "publish", publish)
    world = World(tmp_path)
    world.run(codec=request.param, downlink_codec=request.param)
    return world, states


def exported(world: World, capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    fields = {"state": str(world.folder / "coordinator"), "out": str(world.folder / "out"), "as_json": True}
    assert export.run(export.Options(**{**fields, **options})) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_every_version_as_it_was_published(
    ran: tuple[World, list[Tensors]], capsys: pytest.CaptureFixture[str]
) -> None:
    world, states = ran
    settled(world)
    assert len(states) == 5
    for version, state in enumerate(states):
        found = exported(world, capsys, version=version)
        assert (found["version"], found["run"]) == (version, "run")
        assert equal(load_adapter(world.folder / "out").tensors, state)
    assert exported(world, capsys)["version"] == 4
    name = "adapter_model.safetensors"
    assert (world.folder / "out" / name).read_bytes() == world.result(), "what the run itself has exported"


def test_the_newest_without_its_kept_state(ran: tuple[World, list[Tensors]]) -> None:
    """A coordinator that runs may drop it between two looks: the envelopes lead there too."""
    world, states = ran
    with LedgerReader(world.folder / "coordinator") as history:
        blob = history.versions("run")[-1][3]
        assert blob is not None
        (world.folder / "coordinator" / "blobs" / blob).unlink()
        assert equal(replay_version(history, "run")[1], states[-1])


def test_versions_and_runs_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(tmp_path)
    world.run()
    settled(world)
    with pytest.raises(ConfigError, match="--round: 5: must be from 0 to 4"):
        exported(world, capsys, version=5)
    with pytest.raises(ConfigError, match="--run: 'x': must be one of"):
        exported(world, capsys, run_name="x")
    with pytest.raises(ConfigError, match=r"DIR: .*: must be a coordinator's state directory"):
        exported(world, capsys, state=str(tmp_path))
    with pytest.raises(ConfigError, match="--round"):
        export.Options(state="x", version=-2)
    with pytest.raises(ConfigError, match="--model"):
        export.Options(state="x", merged=True)
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"--out: .*: must be a new or an empty folder"):
        export.Options(state="x", merged=True, model="m", out=str(full))


def test_damage_and_foreign_templates_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world, other = World(tmp_path / "one"), World(tmp_path / "two")
    world.run()
    settled(world)
    config = tmp_path / "two" / "initial" / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 4', '"r": 5'))
    with pytest.raises(MismatchError, match="was begun with another initial adapter"):
        exported(world, capsys, template=str(other.folder / "initial"))
    with LedgerReader(world.folder / "coordinator") as history:
        blob = world.folder / "coordinator" / "blobs" / history.versions("run")[2][2]
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    assert exported(world, capsys, version=1)["version"] == 1
    with pytest.raises(StateError, match="the file was changed"):
        exported(world, capsys, version=2)


def test_without_a_copy_the_template_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that was submitted by hand has left nothing but its ledger."""
    world = World(tmp_path)
    world.run()
    with pytest.raises(ConfigError, match="--template: None: must be the folder"):
        exported(world, capsys)
    assert exported(world, capsys, template=str(tmp_path / "initial"))["version"] == 4
