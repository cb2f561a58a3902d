"""The round loop under kills, losses and restarts."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress.adapters import load_adapter, seeded_init
from fedcompress.errors import ConfigError, MismatchError, TrainingError
from fedcompress.pipeline.coding import stream_update
from fedcompress.pipeline.updates import decode_update
from fedcompress.storage.tensor_file import TensorFile
from fedcompress.types import add
from server.ledger.ledger import Ledger
from server.round.aggregation import AdmittedUpdate, aggregate_round
from tests.support import normal
from tests.unit.clients.site_support import FakeSite
from tests.unit.server.memory import Killed, World


def rows(world: World, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(world.folder / "coordinator" / "ledger.db") as db:
        return db.execute(query).fetchall()


def test_uncompressed_mean_is_plain_federated_averaging(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run(codec="none", downlink_codec="none", rule="mean")
    state = seeded_init(world.layout, 3)
    names = [s.name for s in world.sites.values()]
    weights = np.array([10 + len(n) for n in names], np.float64)
    for round_ in range(1, 5):
        deltas = [normal(world.layout, sum(n.encode()) + 1000 * round_, 0.1) for n in names]
        for key in state:
            mean = sum(w * d[key].astype(np.float64) for w, d in zip(weights / weights.sum(), deltas, strict=True))
            state[key] = (state[key] + mean).astype(np.float32)
    found = load_adapter(tmp_path / "coordinator" / "adapter").tensors
    for key, value in state.items():
        assert np.allclose(found[key], value, atol=1e-6), key


def test_all_sites_and_the_export_hold_the_same_state(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run()
    final = load_adapter(tmp_path / "coordinator" / "adapter").tensors
    start = seeded_init(world.layout, 3)
    assert all((final[n] != start[n]).any() for n in final)
    for site in world.sites.values():
        held = site.session.snapshot("run")
        assert held is not None
        assert held.version == 4
        assert all((held.state[n] == final[n]).all() for n in final)
    assert [e["version"] for e in world.events if e["event"] == "quality"] == [0, 1, 2, 3, 4]


def test_the_ledger_counts_what_was_carried(tmp_path: Path) -> None:
    world = World(tmp_path)
    transport = world.run()
    for way in ("up", "down"):
        ((total, count),) = rows(world, f"SELECT SUM(payload), COUNT(*) FROM message WHERE direction='{way}'")
        assert (total, count) == (transport.carried[way], 18)  # three of them say that the run has ended
    end = world.events[-1]
    assert end["up"] == {"payload_bytes": transport.carried["up"], "messages": 15}


KILLS = [(event, node, round_) for event in ("send", "reply") for node in (0, 2) for round_ in (1, 3, 5)]


@pytest.mark.parametrize("kill", KILLS, ids=lambda k: "-".join(map(str, k)))
def test_killed_in_a_round_and_started_again(tmp_path: Path, kill: tuple[str, int, int]) -> None:
    """Before a message leaves, or after the site has done its round: the same bytes, nothing trained twice."""
    plain = World(tmp_path / "plain")
    plain.run()
    world = World(tmp_path / "killed")
    event, index, round_ = kill

    def fate(what: str, node: int, number: int) -> bool:
        if (what, node - (1 << 63), number) == (event, index, round_):
            raise Killed
        return True

    with pytest.raises(Killed):
        world.run(fate)
    world.run()
    assert world.result() == plain.result()
    assert [s.trained for s in world.sites.values()] == [4, 4, 4]


@pytest.mark.parametrize("method", ["publish", "end_round", "collect_garbage"])
def test_killed_around_the_commit(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = World(tmp_path / "plain")
    plain.run()
    world = World(tmp_path / "killed")
    original, calls = getattr(Ledger, method), []

    def crash(self: Ledger, *args: object, **kwargs: object) -> object:
        calls.append(method)
        if len(calls) == 3:
            raise Killed
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, method, crash)
        with pytest.raises(Killed):
            world.run()
    world.run()
    assert world.result() == plain.result()


@pytest.mark.parametrize("optimizer", ["adam", "nesterov(lr=0.5)"])
def test_the_server_optimizer_goes_on_where_it_was(tmp_path: Path, optimizer: str) -> None:
    """Stopped after round 1, then killed before round 3 is committed: the same bytes as never stopped."""
    plain, changes = World(tmp_path / "plain"), {"server_optimizer": optimizer}
    plain.run(**changes)
    world = World(tmp_path / "stopped")
    world.run(**changes, rounds=1)
    with pytest.raises(Killed):
        world.run(lambda what, node, number: stop_at(what, number, 3), **changes)
    world.run(**changes)
    query = "SELECT version, digest, outer_state FROM version ORDER BY version"
    assert rows(world, query) == rows(plain, query)
    assert len({row[1] for row in rows(world, query)}) == 5
    assert [bool(row[2]) for row in rows(world, query)] == [False, False, False, True, True]
    assert world.result() == plain.result()
    other = World(tmp_path / "other")
    other.run()
    assert world.result() != other.result()


def test_updates_wait_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a round that was killed are removed, and so are those of one that is done."""
    world, folder, seen = World(tmp_path), tmp_path / "coordinator" / "updates" / "run", []

    def watched(
        config: Any, layout: Any, published: Any, admitted: list[AdmittedUpdate], round_: int, **how: Any
    ) -> Any:
        seen.append(len(list(folder.iterdir())))
        assert all(isinstance(a.tensors, TensorFile) and not a.envelope.sections for a in admitted)
        return aggregate_round(config, layout, published, admitted, round_, **how)

    monkeypatch.setattr("server.round.round.aggregate_round", watched)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "publish", killed_at_version(1))
        with pytest.raises(Killed):
            world.run()
    (folder / "left").touch()
    assert len(list(folder.iterdir())) == 4
    world.run(rounds=2)
    assert seen == [3, 3, 3]
    assert not folder.exists()


def killed_at_version(version: int) -> Any:
    original = Ledger.publish

    def publish(self: Ledger, number: int, **fields: Any) -> None:
        if number == version:
            raise Killed
        original(self, number, **fields)

    return publish


def test_a_run_keeps_its_server_optimizer(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run(rounds=1)
    world.run(rounds=2, server_optimizer="adam")
    for other in ("sgd", "yogi"):
        with pytest.raises(ConfigError, match=f"server-optimizer: {other}: must be adam, whose state this run keeps"):
            world.run(rounds=3, server_optimizer=other)
    world.run(rounds=3, server_optimizer="adam(lr=0.1)")


def test_a_ledger_from_before_server_optimizers(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run(rounds=1)
    with sqlite3.connect(tmp_path / "coordinator" / "ledger.db") as db:
        db.execute("ALTER TABLE version DROP COLUMN outer_state")
    world.run(rounds=2, server_optimizer="adam")
    assert rows(world, "SELECT COUNT(*) FROM version WHERE outer_state IS NOT NULL") == [(1,)]


def test_updates_without_what_weighs_them_are_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(TrainingError, match="0 updates admitted"):
        world.run(rounds=1, weighting="inverse-loss")
    assert rows(world, "SELECT DISTINCT code FROM refusal") == [("weight",)]
    world.run(rounds=1, weighting="given(sites=north:2|south:1)", quorum=2)
    assert [e["merged"] for e in world.events if e["event"] == "round"] == [2]
    ((message,),) = rows(world, "SELECT message FROM refusal WHERE site='west' ORDER BY id DESC LIMIT 1")
    assert "west: lacks what weighs it" in str(message)


def test_new_node_ids_do_not_count_an_update_twice(tmp_path: Path) -> None:
    """Every SuperNode gets a new id after each round; merged updates are not given back."""
    plain = World(tmp_path / "plain")
    plain.run()
    world = World(tmp_path / "moved")
    for rounds in range(1, 5):
        world.run(rounds=rounds)
        world.sites = {node + 1000: site for node, site in world.sites.items()}
    assert world.result() == plain.result()


def test_a_lost_update_returns_to_the_residual(tmp_path: Path) -> None:
    """A site's reply of round 2 is lost; the round closes at its deadline, and nothing of the site is lost.

    It may still work on that round, so that it is not asked in the next one.
    """
    world = World(tmp_path)
    south = (1 << 63) + 1
    world.run(
        lambda what, node, number: (what, node, number) != ("reply", south, 2), quorum=2, round_timeout=30.0, rounds=5
    )
    assert [e["merged"] for e in world.events if e["event"] == "round"] == [3, 2, 2, 3, 3]
    assert rows(world, "SELECT round, code FROM refusal") == [(2, "deadline")]
    site = world.sites[south]
    held = site.session.snapshot("run")
    assert held is not None
    total = held.residual
    merged = [r[0] for r in site.session._db.execute("SELECT blob FROM outbox WHERE status!='returned' ORDER BY round")]
    assert len(merged) == 3
    for blob in merged:
        total = add(total, decode_update(site.session._blobs.get(blob), world.layout)[1])
    for name, value in site.deltas.items():
        assert np.allclose(total[name], value, atol=1e-5), name


def test_a_site_that_lost_its_disk_is_brought_up_to_date_in_the_same_round(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run(rounds=2)
    site = world.sites[(1 << 63) + 1]
    site.session.close()
    shutil.rmtree(site.folder)
    site.reopen()
    world.events.clear()
    world.run(rounds=3)
    assert [e["merged"] for e in world.events if e["event"] == "round"] == [3]
    assert rows(world, "SELECT site, code FROM refusal") == [("south", "base-digest")]


def test_steps_of_zero_are_versions_too(tmp_path: Path) -> None:
    """Two versions with one digest: the sites follow, and nobody has to be sent a whole state."""
    world = World(tmp_path)
    world.run(server_lr=0.0, rounds=2)
    assert rows(world, "SELECT COUNT(*) FROM refusal") == [(0,)]
    for site in world.sites.values():
        held = site.session.snapshot("run")
        assert held is not None
        assert held.version == 2


def test_a_site_cannot_say_that_it_holds_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest of the state decides, not the number in the header."""

    def lie(*args: Any, **options: Any) -> Any:
        return stream_update(*args[:3], replace(args[3], version=4_000_000_000), *args[4:], **options)

    monkeypatch.setattr("clients.worker.round_runner.stream_update", lie)
    world = World(tmp_path)
    with pytest.raises(Killed):
        world.run(lambda what, node, number: stop_at(what, number, 3))
    assert rows(world, "SELECT DISTINCT acked FROM site") == [(1,)]


def stop_at(what: str, number: int, round_: int) -> bool:
    if (what, number) == ("send", round_):
        raise Killed
    return True


Fates = dict[tuple[str, int, int], str]
FATES = st.dictionaries(
    st.tuples(st.sampled_from(["send", "reply"]), st.integers(0, 1), st.integers(1, 4)),
    st.sampled_from(["lost", "killed", "killed and moved"]),
    max_size=5,
)


@settings(max_examples=12, deadline=None)
@given(fates=FATES)
def test_whatever_happens_every_delta_is_merged_once_or_still_at_its_site(fates: Fates) -> None:
    """Lost messages, kills of the coordinator, SuperNodes with new ids: sum(merged) + open + residual == sum(delta)."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        world, merged = World(Path(folder), ("north", "south")), record_merges(patch)
        left = dict(fates)

        def fate(what: str, node: int, number: int) -> bool:
            key = (what, node % 2, number)
            match left.pop(key, ""):
                case "lost":
                    return False
                case "killed":
                    raise Killed
                case "killed and moved":
                    raise Moved
            return True

        for _ in range(len(fates) + 1):
            try:
                world.run(fate, rounds=3, round_timeout=5.0)
                break
            except Moved:
                world.sites = {node + 1000: site for node, site in world.sites.items()}
            except (Killed, TrainingError):
                pass
        else:
            raise AssertionError("each start uses up one fate at least")
        for site in world.sites.values():
            check_books(
                world, site, [update for round_ in merged.values() for update in round_ if update.site == site.name]
            )
            site.session.close()


class Moved(BaseException):
    """The coordinator is killed, and the SuperNodes start anew."""


def record_merges(patch: pytest.MonkeyPatch) -> dict[int, list[AdmittedUpdate]]:
    """Round to what its last try merged; a try that is not committed is done again."""
    merged: dict[int, list[AdmittedUpdate]] = {}

    def recorded(
        config: Any, layout: Any, published: Any, admitted: list[AdmittedUpdate], round_: int, **how: Any
    ) -> Any:
        merged[round_] = [replace(a, tensors=dict(a.tensors)) for a in admitted]  # the files are removed
        return aggregate_round(config, layout, published, admitted, round_, **how)

    patch.setattr("server.round.round.aggregate_round", recorded)
    return merged


def check_books(world: World, site: FakeSite, merged: list[AdmittedUpdate]) -> None:
    held = site.session.snapshot("run")
    if held is None:  # no message has reached it
        assert not merged
        return
    total, done = held.residual, {a.envelope.digest.hex() for a in merged}
    for update in merged:
        total = add(total, update.tensors)
    for digest, blob in site.session._db.execute("SELECT digest, blob FROM outbox WHERE status='open'"):
        if digest not in done:
            total = add(total, decode_update(site.session._blobs.get(blob), world.layout)[1])
    for name, value in site.deltas.items():
        assert np.allclose(total[name], value, atol=1e-4), (site.name, name)


def test_too_few_updates(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(TrainingError, match="round 1: 0 updates admitted: the quorum is 1"):
        world.run(lambda what, node, number: False, round_timeout=5.0)


def test_too_few_sites(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(TrainingError, match="min-sites: 3 connected: 9 needed"):
        world.run(min_sites=9, join_timeout=5.0)
    waiting = [e for e in world.events if e["event"] == "waiting"]
    assert waiting == [{"event": "waiting", "sites": 3, "needed": 9}]


def test_sampling_asks_some(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run(sites_per_round=2)
    assert [e["asked"] for e in world.events if e["event"] == "round"] == [2, 2, 2, 2]


def test_a_run_name_cannot_be_reused_for_something_else(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run(rounds=1)
    (tmp_path / "initial" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 99}')
    with pytest.raises(MismatchError, match="was begun with another adapter"):
        world.run(rounds=2)


def test_finished_runs_can_be_submitted_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run()
    first = world.result()
    world.run()
    assert world.result() == first
    assert [s.trained for s in world.sites.values()] == [4, 4, 4]


def test_a_rule_and_a_codec_that_go_badly_together_are_named_first(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run(rule="median", rounds=1)
    first, second = (e["message"] for e in world.events[:2] if e["event"] == "warning")
    assert first.startswith("min-cohort 1: a version may be the update of one site")
    assert "median" in second
