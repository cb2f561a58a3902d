"""What a site exports is what the coordinator exports, and the site knows that the run has ended."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from clients.commands import export
from clients.commands.status import ended_line
from clients.site import SiteConfig
from clients.state.last_tasks import read_last_tasks
from fedcompress.errors import ConfigError, TrainingError
from server.state_dir import request_stop
from tests.unit.clients.commands.subjects import TOML
from tests.unit.clients.site_support import FakeSite
from tests.unit.server.memory import MemoryTransport, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def site_file(world: World, site: FakeSite) -> Path:
    """Write a site.toml whose state directory is that of a site of the world."""
    folder = world.folder / "files" / site.name
    (folder / "model").mkdir(parents=True, exist_ok=True)
    for name in ("t.jsonl", "h.jsonl", "model/config.json"):
        (folder / name).write_text("{}")
    file = folder / "site.toml"
    file.write_text(TOML)
    state = SiteConfig.load(file).state_dir
    state.mkdir(parents=True, exist_ok=True)
    if not (state / "session").exists():
        (state / "session").symlink_to(site.folder)
    return file


def exported(file: Path, out: Path, capsys: pytest.CaptureFixture[str], **more: str) -> dict[str, object]:
    assert export.run(export.Options(site=str(file), out=str(out), as_json=True, **more)) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_every_site_has_the_model_that_the_coordinator_has(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world.run()
    for site in world.sites.values():
        file = site_file(world, site)
        found = exported(file, tmp_path / "out" / site.name, capsys)
        assert (found["run"], found["version"], found["ended"]) == ("run", 4, "finished")
        files = {path.name for path in (tmp_path / "out" / site.name).iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "labels.json"} <= files
        for name in ("adapter_model.safetensors", "adapter_config.json", "labels.json"):
            own = (tmp_path / "out" / site.name / name).read_bytes()
            assert own == (world.folder / "coordinator" / "adapter" / name).read_bytes(), name
        assert ended_line(SiteConfig.load(file)).startswith("run        run finished at version 4, ")
        assert site.rests == 1, "its ranks keep the model in memory"


def test_a_stopped_run_is_told_too(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(event: str, node: int, round_: int) -> bool:
        if event == "reply" and round_ == 2:
            request_stop(world.folder / "coordinator")
        return True

    world.run(stop)
    for number, site in enumerate(world.sites.values()):
        found = exported(site_file(world, site), tmp_path / str(number), capsys)
        assert (found["version"], found["ended"]) == (2, "stopped")


def test_a_site_that_is_not_reached_is_named(world: World) -> None:
    west = next(node for node, site in world.sites.items() if site.name == "west")
    world.run(lambda event, node, round_: not (event == "send" and node == west and round_ == 5))
    warnings = [e["message"] for e in world.events if e["event"] == "warning"]
    assert "not known to have heard that the run has ended: west" in warnings
    assert world.events[-1]["event"] == "finished"
    assert not read_last_tasks(SiteConfig.load(site_file(world, world.sites[west])).state_dir)[0].ended


def test_while_the_run_goes_on(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A site may export what it holds at any time, and its status does not say that the run has ended."""

    def lose(event: str, node: int, round_: int) -> bool:
        return not (event == "reply" and round_ == 3)

    with pytest.raises(TrainingError):
        world.run(lose, patience=0, round_timeout=5.0)
    site = next(iter(world.sites.values()))
    file = site_file(world, site)
    found = exported(file, tmp_path / "out", capsys)
    assert (found["version"], found["ended"]) == (2, "")
    assert not ended_line(SiteConfig.load(file))


def test_a_run_that_goes_on_after_its_end(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More rounds of a finished run: the site is asked again, and trains."""
    world.run(rounds=1)
    world.run(rounds=2)
    site = next(iter(world.sites.values()))
    found = exported(site_file(world, site), tmp_path / "out", capsys)
    assert (found["version"], found["ended"], site.trained) == (2, "finished", 2)


def test_what_cannot_be_exported(world: World, tmp_path: Path) -> None:
    site = next(iter(world.sites.values()))
    file = site_file(world, site)
    options = export.Options(site=str(file), out=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="has taken part in no run yet"):
        export.run(options)
    world.run()
    with pytest.raises(ConfigError, match=r"--run: other: must be one of \['run'\]"):
        export.run(replace(options, run_name="other"))
    with pytest.raises(ConfigError, match="must be a folder"):
        export.Options(site=str(file), out=str(file))


def test_tasks_of_another_version_are_listed_and_not_exported(world: World, tmp_path: Path) -> None:
    """After an upgrade `status` goes on; what is exported must be understood."""
    world.run()
    site = next(iter(world.sites.values()))
    file = site_file(world, site)
    with sqlite3.connect(site.folder / "session.db") as database:
        database.execute("""UPDATE task SET task=replace(task, '"protocol":6', '"protocol":99,"later":1')""")
    assert ended_line(SiteConfig.load(file)).startswith("run        run finished at version 4, ")
    with pytest.raises(ConfigError, match="must be a task of protocol 6"):
        export.run(export.Options(site=str(file), out=str(tmp_path / "out")))


def test_the_end_is_one_message_each_way(world: World) -> None:
    transport = world.over(MemoryTransport(world.sites))
    ends = [task for _, task, _, _ in transport.sent if task.ended]
    assert [(task.ended, task.steps, task.round) for task in ends] == [("finished", 0, 5)] * 3
    assert [payload for _, task, payload, _ in transport.sent if task.ended] == [b""] * 3, "they hold the last version"


def test_a_site_that_missed_the_last_version_gets_it_with_the_end(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    west = next(node for node, site in world.sites.items() if site.name == "west")
    asked: list[int] = []

    def lose_the_evaluation(event: str, node: int, round_: int) -> bool:
        if (event, node, round_) != ("send", west, 5):
            return True
        asked.append(round_)
        return len(asked) > 1

    world.run(lose_the_evaluation, round_timeout=5.0)
    found = exported(site_file(world, world.sites[west]), tmp_path / "out", capsys)
    assert (found["version"], found["ended"]) == (4, "finished")
