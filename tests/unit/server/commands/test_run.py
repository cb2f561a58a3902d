"""What ``run`` refuses before it starts anything, and what it keeps."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedcompress.adapters import load_adapter
from fedcompress.errors import ConfigError, LockedError
from fedcompress.runtime.process_group import free_port
from fedcompress.storage.locks import hold
from server.commands import run as command
from server.settings import load_settings
from server.state_dir import RUN_LOCK, request_stop, stop_requested
from tests.support import equal
from tests.unit.server.commands.world import config_file, settled
from tests.unit.server.memory import Killed, World


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Run configs of runs that would have been started."""
    found: list[dict[str, Any]] = []

    def supervise(settings: Any, flat: dict[str, Any], left: list[str], options: Any) -> int:
        found.append(flat)
        return 0

    monkeypatch.setattr(command, "_supervise", supervise)
    monkeypatch.setattr(command, "_check_listen", lambda config: None)
    return found


def run(world: World, *, resume: bool = False, **keys: object) -> int:
    options = command.Options(config=str(config_file(world, **keys)), resume=resume, as_json=True)
    return command.run(options)


def killed_in_round(world: World, number: int) -> None:
    def fate(event: str, node: int, round_: int) -> bool:
        if (event, round_) == ("reply", number):
            raise Killed
        return True

    with pytest.raises(Killed):
        world.run(fate)


def test_a_new_run_goes_on_from_a_copy_of_its_adapter(tmp_path: Path, started: list[dict[str, Any]]) -> None:
    world = World(tmp_path)
    assert run(world) == 0
    (flat,) = started
    assert flat["initial-adapter"] == str(tmp_path / "coordinator" / "templates" / "run")
    assert flat["rounds"] == 4
    kept = json.loads((tmp_path / "coordinator" / "settings.json").read_text())
    assert kept["run"]["initial-adapter"] == str(tmp_path / "initial")
    assert (tmp_path / "coordinator").stat().st_mode & 0o077 == 0
    (tmp_path / "initial" / "fedcompress.json").unlink()
    with pytest.raises(ConfigError, match=r"run\.initial-adapter: .*: must exist"):
        run(world)


def test_a_run_that_was_begun_needs_resume(tmp_path: Path, started: list[dict[str, Any]]) -> None:
    world = World(tmp_path)
    run(world)
    killed_in_round(world, 3)
    with pytest.raises(ConfigError, match=r"run\.run: run: was begun, 2 of 4 rounds are done: go on with --resume"):
        run(world)
    request_stop(tmp_path / "coordinator")
    assert run(world, resume=True) == 0
    assert not stop_requested(tmp_path / "coordinator")
    shutil.rmtree(tmp_path / "initial")
    assert run(world, resume=True) == 0, "the copy is enough"
    assert len(started) == 3


def test_the_adapter_must_not_change_under_a_run(tmp_path: Path, started: list[dict[str, Any]]) -> None:
    world = World(tmp_path)
    run(world)
    weights = tmp_path / "initial" / "adapter_model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert run(world) == 0, "it was not begun yet: the new one is taken"
    assert (Path(started[-1]["initial-adapter"]) / weights.name).read_bytes() == weights.read_bytes()
    weights.write_bytes(before)
    run(world)
    killed_in_round(world, 2)
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(ConfigError, match=r"run\.initial-adapter: .*: must be as it was when run run was begun"):
        run(world, resume=True)


def test_a_finished_run_says_so(
    tmp_path: Path, started: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path)
    world.run()
    settled(world)
    shutil.copytree(tmp_path / "coordinator" / "templates" / "run", tmp_path / "initial")
    for resume in (False, True):
        assert run(world, resume=resume) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["state"] == "finished"
        assert "run run: is finished: 4 rounds" in err
    assert started == []
    assert run(world, resume=True, rounds=6) == 0, "more rounds: it goes on"
    assert started[0]["rounds"] == 6


def test_killed_in_the_last_evaluation_it_is_not_finished(tmp_path: Path, started: list[dict[str, Any]]) -> None:
    world = World(tmp_path)
    killed_in_round(world, 5)
    settled(world)
    assert run(world, resume=True) == 0
    assert len(started) == 1


def test_two_on_one_state_directory(tmp_path: Path, started: list[dict[str, Any]]) -> None:
    world = World(tmp_path)
    with hold(tmp_path / "coordinator" / RUN_LOCK, "held"), pytest.raises(LockedError, match=r"works on it, pid \d+"):
        run(world)
    assert started == []


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    world = World(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        path = config_file(world)
        path.write_text(path.read_text().replace("[run]", f'listen = "{address}"\n[run]'))
        with pytest.raises(ConfigError, match=r"listen: .*: cannot be listened on: Address already in use"):
            command.run(command.Options(config=str(path)))


def test_a_state_directory_that_cannot_be_made(tmp_path: Path) -> None:
    world = World(tmp_path)
    (tmp_path / "coordinator").write_text("")
    with pytest.raises(ConfigError, match=r"coordinator\.state_dir: .*: cannot be made"):
        run(world)


def test_a_backup_of_a_running_coordinator_goes_on(tmp_path: Path) -> None:
    """As docs/operations.md has it: the ledger, then the blobs. Sites are two rounds ahead of it, and come back."""
    world, backup = World(tmp_path), tmp_path / "backup"

    def fate(event: str, node: int, round_: int) -> bool:
        if (event, round_) == ("send", 3) and not backup.exists():
            backup.mkdir()
            with (
                sqlite3.connect(tmp_path / "coordinator" / "ledger.db") as db,
                sqlite3.connect(backup / "ledger.db") as to,
            ):
                db.backup(to)
            shutil.copytree(tmp_path / "coordinator" / "blobs", backup / "blobs")
        return True

    world.run(fate)
    assert {s.trained for s in world.sites.values()} == {4}
    shutil.rmtree(tmp_path / "coordinator")
    backup.rename(tmp_path / "coordinator")
    world.run()
    held = [site.session.snapshot("run") for site in world.sites.values()]
    final = load_adapter(tmp_path / "coordinator" / "adapter").tensors
    for one in held:
        assert one is not None
        assert one.version == 4
        assert equal(one.state, final)


def test_a_damaged_ledger_is_replaced_by_its_copy_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, said = World(tmp_path), list[list[str]]()
    killed_in_round(world, 3)
    settled(world)
    monkeypatch.setattr(command, "_supervise", lambda settings, flat, left, options: said.append(left) or 0)
    monkeypatch.setattr(command, "_check_listen", lambda config: None)
    ledger = tmp_path / "coordinator" / "ledger.db"
    ledger.write_bytes(b"\0" * 5000)
    for suffix in ("-wal", "-shm"):
        ledger.with_name(f"ledger.db{suffix}").unlink(missing_ok=True)
    assert run(world, resume=True) == 0
    assert "copies made after a round take its place" in said[0][0]
    assert command._count_rounds(load_settings(tmp_path / "coordinator.toml")) == 2


def with_page(world: World, address: str) -> Any:
    """The page of a run whose CONFIG.toml asks for one there."""
    settings = settled(world)
    watched = replace(settings.coordinator, watch=address)
    return command._serve_page(replace(settings, coordinator=watched))


def test_the_page_is_there_while_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path)
    world.run()
    monkeypatch.delenv(command.TOKEN, raising=False)
    address = f"127.0.0.1:{free_port()}"
    with with_page(world, address) as said:
        assert said == [f"page: http://{address}/"]
        with urllib.request.urlopen(f"http://{address}/api/snapshot", timeout=10) as answer:
            assert json.load(answer)["run"] == "run"
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{address}/", timeout=10)


def test_a_token_that_was_made_up_is_not_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said goes to a log where it goes to no terminal."""
    world = World(tmp_path)
    world.run()
    monkeypatch.delenv(command.TOKEN, raising=False)
    monkeypatch.setattr("server.watch.web.is_loopback", lambda host: False)
    note = tmp_path / "coordinator" / "watch.token"
    address = f"127.0.0.1:{free_port()}"
    with with_page(world, address) as said:
        token = note.read_text().strip()
        assert len(token) >= 16
        assert note.stat().st_mode & 0o777 == 0o600
        assert said == [f"page: http://{address}/: its token is in {note}"]
        with urllib.request.urlopen(f"http://{address}/api/snapshot?token={token}", timeout=10) as answer:
            assert json.load(answer)["run"] == "run"
    assert not note.exists()
    monkeypatch.setattr(command, "is_terminal", lambda: True)
    with with_page(world, address) as said:
        assert "?token=" in said[0]
        assert not note.exists()


def test_no_page_unless_it_is_wanted(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run()
    with with_page(world, "") as said:
        assert said == []


def test_a_page_where_another_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path)
    world.run()
    monkeypatch.delenv(command.TOKEN, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with (
            pytest.raises(ConfigError, match=rf"coordinator.watch: {address}: cannot be listened at"),
            with_page(world, address),
        ):
            pass
    monkeypatch.setenv(command.TOKEN, "short")
    with pytest.raises(ConfigError, match=rf"{command.TOKEN}: .*16"), with_page(world, "127.0.0.1:1"):
        pass
