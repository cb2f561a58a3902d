"""Coordinators and sites that come back from a backup: nothing is merged twice, and what is lost is said."""

from __future__ import annotations

import itertools
import shutil
import sqlite3
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fedcompress.errors import IdentityError, TrainingError
from fedcompress.pipeline.updates import decode_update
from fedcompress.types import Tensors, add, subtract, zeros
from server.ledger.reader import read_events
from tests.deployment import deployed, write_base
from tests.faults.record import record
from tests.unit.clients.site_support import FakeSite
from tests.unit.server.memory import World
from tests.unit.server.round.test_signatures import SignedWorld

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("north", "south", "west")


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Six rounds that nobody disturbed."""
    world = World(tmp_path_factory.mktemp("calm"))
    world.run(rounds=6)
    return world


def documented(after: str) -> str:
    """The next commands of docs/operations.md, as they stand there; `state` and `backup` are folders here."""
    text = (ROOT / "docs" / "operations.md").read_text().partition("## Back up and restore")[2]
    lines = text.partition(after)[2].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("    "))
    return "\n".join(line.strip() for line in itertools.takewhile(lambda x: x.startswith("    "), lines[start:]))


def back_up(folder: Path) -> None:
    """Literally, beside a coordinator that works on it."""
    (folder / "backup").mkdir()
    for name in ("templates", "settings.json", "events.jsonl"):  # of `fedcompress run`, of which this world has none
        (folder / "coordinator" / name).touch()
    subprocess.run(["bash", "-euc", documented("While it runs")], cwd=folder, check=True)


def restore(folder: Path, *, is_noted: bool = True) -> None:
    """Into an empty state directory, by the commands of docs/operations.md but for the last, which begins the run."""
    shutil.rmtree(folder / "coordinator")
    (folder / "coordinator").mkdir()
    commands = documented("To restore").splitlines()[: 2 if is_noted else 1]
    subprocess.run(["bash", "-euc", "\n".join(commands)], cwd=folder, check=True)


def merged(world: World) -> list[tuple[int, str, str]]:
    with sqlite3.connect(world.folder / "coordinator" / "ledger.db") as db:
        return db.execute("SELECT round, site, digest FROM merged ORDER BY round, site").fetchall()


def books(world: World, site: FakeSite) -> tuple[Tensors, Tensors]:
    """What a site has trained, and what of it was merged, is open, or in its residual."""
    held = site.session.snapshot("run")
    assert held is not None
    total = add(zeros(world.layout), held.residual)
    own = {digest for _, name, digest in merged(world) if name == site.name}
    for status, digest, blob in site.session._db.execute("SELECT status, digest, blob FROM outbox"):
        if status == "open" or digest in own:
            total = add(total, decode_update(site.session._blobs.get(blob), world.layout)[1])
    return site.deltas, total


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the documented backup needs the sqlite3 command")
@pytest.mark.parametrize("backed_up_after", [1, 2, 4, 5])
def test_a_coordinator_from_its_backup(tmp_path: Path, calm: World, backed_up_after: int) -> None:
    """Sites answer what it does again from their outboxes: the bytes of a run that was never set back."""
    world = World(tmp_path)
    (tmp_path / "state").symlink_to(tmp_path / "coordinator")

    class Recorder(list[dict[str, object]]):
        def append(self, event: dict[str, object]) -> None:
            super().append(event)
            if (
                event["event"] == "asked"
                and event["round"] == backed_up_after + 1
                and not (tmp_path / "backup").exists()
            ):
                back_up(tmp_path)

    world.events = Recorder()
    world.run(rounds=6)
    trained = [site.trained for site in world.sites.values()]
    restore(tmp_path)
    world.events.clear()
    world.run(rounds=6)
    assert next(e for e in world.events if e["event"] == "start")["first_round"] == backed_up_after + 1
    assert [site.trained for site in world.sites.values()] == trained, "a round was trained again"
    assert world.result() == calm.result()
    assert merged(world) == merged(calm)
    for site in world.sites.values():
        trained_, kept = books(world, site)
        assert all(np.allclose(trained_[n], kept[n], atol=1e-5) for n in kept)
    record(
        "set back",
        "the coordinator, by the documented backup",
        6 - backed_up_after,
        "same adapter, nothing trained again",
    )


def test_a_coordinator_from_a_backup_with_other_sites(tmp_path: Path) -> None:
    """One site is away when it goes on: other versions follow, and what sites had merged since returns to them."""
    world = World(tmp_path)
    (tmp_path / "state").symlink_to(tmp_path / "coordinator")
    world.run(rounds=2)
    shutil.copytree(tmp_path / "coordinator", tmp_path / "backup")
    world.run(rounds=5)
    restore(tmp_path)
    west = (1 << 63) + 2
    world.run(lambda event, node, round_: not (event == "send" and node == west and round_ == 3), rounds=5, quorum=2)
    rows = merged(world)
    assert [(r, s) for r, s, _ in rows if r == 3] == [(3, "north"), (3, "south")]
    assert len({digest for _, _, digest in rows}) == len(rows) == 13  # it is not asked in the next round either
    for site in world.sites.values():
        trained, kept = books(world, site)
        assert all(np.allclose(trained[n], kept[n], atol=1e-4) for n in kept), site.name


def test_signed_tasks_of_a_coordinator_from_a_backup(tmp_path: Path, calm: World) -> None:
    """Sites take them only if they say that it was restored; what was kept of before is refused as ever."""
    world = SignedWorld(tmp_path)
    (tmp_path / "state").symlink_to(tmp_path / "coordinator")
    world.run(rounds=2)
    shutil.copytree(tmp_path / "coordinator", tmp_path / "backup")
    kept = world.run(rounds=5).sent
    restore(tmp_path, is_noted=False)
    with pytest.raises(TrainingError, match="0 updates admitted"):
        world.run(rounds=6, patience=0)
    assert {code for _, code in world.refusals()} == {"replay"}
    restore(tmp_path)
    world.run(rounds=6)
    assert world.result() == calm.result()
    for node, task, payload, signature in kept:
        with pytest.raises(IdentityError, match="was asked for before"):
            world.sites[node].answer(task, payload, signature)


def test_signed_tasks_of_a_coordinator_that_undid_a_round(tmp_path: Path, calm: World) -> None:
    """A blob is damaged, so that a round is undone: sites that know the coordinator's key go back with it."""
    world = SignedWorld(tmp_path)
    world.run(rounds=3)
    state = tmp_path / "coordinator"
    with sqlite3.connect(state / "ledger.db") as db:
        (residual,) = db.execute("SELECT residual FROM version WHERE version=3").fetchone()
    (state / "blobs" / residual).write_bytes(b"damaged")
    world.run(rounds=6)
    assert (state / "restored").exists()
    assert world.result() == calm.result()


@pytest.mark.parametrize("is_moved", [False, True], ids=["same node", "another node"])
def test_a_site_from_its_backup(tmp_path: Path, is_moved: bool) -> None:
    """Its state folder is of two rounds ago: what it held open was merged since, and is not given back."""
    world = World(tmp_path)
    world.run(rounds=3)
    node, site = next((n, s) for n, s in world.sites.items() if s.name == "south")
    site.session.close()
    shutil.copytree(site.folder, tmp_path / "older")
    site.reopen()
    world.run(rounds=5)
    site.session.close()
    shutil.rmtree(site.folder)
    shutil.copytree(tmp_path / "older", site.folder)
    site.reopen()
    if is_moved:
        world.sites[(1 << 63) + 9] = world.sites.pop(node)
    before = site.deltas
    world.run(rounds=6)
    rows = merged(world)
    assert [s for r, s, _ in rows if r == 6] == list(NAMES)
    assert len({digest for _, _, digest in rows}) == len(rows)
    trained, kept = subtract(site.deltas, before), zeros(world.layout)
    held = site.session.snapshot("run")
    assert held is not None
    sent = site.session.last_sent("run")
    assert sent is not None
    kept = add(sent, held.residual)
    assert all(np.allclose(trained[n], kept[n], atol=1e-5) for n in kept), "older work was sent a second time"
    record("set back", "a site, by two rounds", 1, "nothing merged twice; its residual is lost")


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_the_documented_backup_through_flower(tmp_path: Path) -> None:
    """Backed up in round 2 of 3, lost after the end, restored: `run --resume` comes to the same SHA-256."""
    base = write_base(tmp_path / "base")
    with deployed(tmp_path / "run", base, 3) as it:
        run = it.start("run", it.config, "--json")
        it.until(lambda: it.asked(2), "round 2", run)
        (it.folder / "backup").mkdir()
        subprocess.run(["bash", "-euc", documented("While it runs")], cwd=it.folder, check=True)
        digest = it.finish(run)
        shutil.rmtree(it.state)
        it.state.mkdir()
        commands = documented("To restore").splitlines()
        assert commands[2] == "fedcompress run coordinator.toml --resume"
        subprocess.run(["bash", "-euc", "\n".join(commands[:2])], cwd=it.folder, check=True)
        assert it.finish(it.start(*commands[2].split()[1:2], it.config, "--resume", "--json")) == digest
        rounds = it.rounds()
        replies = [e for e in read_events(it.state) if e["event"] == "reply" and e["round"] <= 3]
    assert [(r["round"], r["merged"]) for r in rounds] == [(1, 2), (2, 2), (3, 2)]
    assert all(e["replayed"] for e in replies if e["round"] == 3), "a round was trained again"
    record("set back", "the coordinator, by the documented backup, through Flower", 1, "same SHA-256")
