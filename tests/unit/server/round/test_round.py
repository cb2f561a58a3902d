"""Rounds that do not wait for all: over-sampling, late updates, buffers, quorum, bounds; damaged ledgers."""

from __future__ import annotations

import errno
import sqlite3
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress.adapters import load_adapter
from fedcompress.config.run_config import RunConfig
from fedcompress.errors import ConfigError, MismatchError, StateError, TrainingError
from fedcompress.pipeline.updates import decode_update
from fedcompress.storage.blobs import BlobStore
from fedcompress.types import Tensors, add, subtract, zeros
from server.events import NodeHeld
from server.ledger.ledger import OWN_CODES, Ledger, SiteRow
from server.round.norm_bound import compute_norm_bound
from server.round.participants import Participants
from server.round.sampling import choose_nodes, compute_sampling_weights
from server.transport.base import Incoming
from tests.support import lora_layout, normal
from tests.unit.clients.site_support import FakeSite
from tests.unit.server.memory import Killed, MemoryTransport, SlowTransport, World

NAMES = ("east", "north", "south", "west")


def rounds(world: World) -> list[dict[str, int]]:
    return [e for e in world.events if e["event"] == "round"]


def table(world: World, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(world.folder / "coordinator" / "ledger.db") as db:
        return db.execute(query).fetchall()


def test_the_first_of_more_than_are_needed(tmp_path: Path) -> None:
    world = World(tmp_path, NAMES)
    transport = SlowTransport(world.sites, lambda site, round_: 100.0 if site == "west" else 1.0)
    world.over(transport, sites_per_round=3, over_sampling=1.34, min_sites=4)
    # it is not asked while it may still work on what was not waited for
    assert [(e["asked"], e["merged"]) for e in rounds(world)] == [(4, 3), (3, 3), (4, 3), (3, 3)]
    assert sum(e["seconds"] for e in rounds(world)) < 10, "the slowest site was waited for"
    outcomes = dict(table(world, "SELECT outcome, COUNT(*) FROM task GROUP BY outcome"))
    assert outcomes["surplus"] == 2
    assert not table(world, "SELECT * FROM task WHERE outcome='open'")


def test_a_late_update_is_merged_for_less(tmp_path: Path) -> None:
    """South answers round 1 in round 2: it is merged there, and not given back."""
    world = World(tmp_path)
    slow = SlowTransport(world.sites, lambda site, round_: 15.0 if (site, round_) == ("south", 1) else 6.0)
    world.over(slow, late="merge", round_timeout=10.0, rounds=3)
    merged = table(world, "SELECT round, site, trained_version FROM merged ORDER BY round, site")
    assert (2, "south", 0) in merged
    assert [e["late"] for e in rounds(world)] == [0, 1, 0]
    assert [e["asked"] for e in rounds(world)] == [3, 2, 3]
    assert not [e for e in world.events if e["event"] == "refused"]


def test_a_late_update_is_returned(tmp_path: Path) -> None:
    world = World(tmp_path)
    slow = SlowTransport(world.sites, lambda site, round_: 15.0 if (site, round_) == ("south", 1) else 1.0)
    world.over(slow, round_timeout=10.0, rounds=3)
    assert [e["merged"] for e in rounds(world)] == [2, 2, 3] or [e["merged"] for e in rounds(world)] == [2, 3, 3]
    assert {e["code"] for e in world.events if e["event"] == "refused"} == {"deadline"}


def test_too_stale_to_be_merged(tmp_path: Path) -> None:
    world = World(tmp_path)
    slow = SlowTransport(world.sites, lambda site, round_: 45.0 if (site, round_) == ("south", 1) else 1.0)
    world.over(slow, late="merge", round_timeout=10.0, rounds=6, max_staleness=2, buffer=2)
    assert all(version >= round_ - 3 for round_, version in table(world, "SELECT round, trained_version FROM merged"))
    assert "stale" in {e["code"] for e in world.events if e["event"] == "refused"}


def everything(world: World, site: FakeSite) -> tuple[Tensors, Tensors]:
    """What a site has trained, and what of it was neither merged nor kept."""
    merged = {digest for (digest,) in table(world, f"SELECT digest FROM merged WHERE site='{site.name}'")}
    held = site.session.snapshot("run")
    assert held is not None
    lost = subtract(site.deltas or zeros(world.layout), held.residual)
    with sqlite3.connect(site.folder / "session.db") as db:
        sent = db.execute("SELECT digest, status, blob FROM outbox").fetchall()
    for digest, status, blob in sent:
        assert (digest in merged) or status != "merged", "the site takes for merged what was not"
        assert (digest not in merged) or status != "returned", "given back, and merged as well"
        if digest in merged or status == "open":
            lost = subtract(lost, decode_update(BlobStore(site.folder / "blobs").get(blob), world.layout)[1])
    return site.deltas, lost


def nothing_is_lost(world: World, site: FakeSite) -> None:
    deltas, lost = everything(world, site)
    for name, value in lost.items():
        assert np.abs(value).max() <= 1e-5 * max(1.0, np.abs(deltas[name]).max()), (site.name, name)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_nothing_is_lost_or_counted_twice(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever the delays: what was trained is merged once, open, or in the residual."""
    world = World(tmp_path_factory.mktemp("world"), NAMES)
    delays = data.draw(st.lists(st.sampled_from([1.0, 4.0, 11.0, 25.0]), min_size=40, max_size=40))
    buffer = data.draw(st.sampled_from([0, 2, 3]))
    late = "merge" if buffer else data.draw(st.sampled_from(["return", "merge"]))
    slow = SlowTransport(world.sites, lambda site, round_: delays[(7 * round_ + NAMES.index(site)) % 40])
    with suppress(TrainingError):  # no quorum
        world.over(slow, rounds=6, round_timeout=10.0, late=late, buffer=buffer, quorum=1, max_staleness=2)
    twice = table(world, "SELECT digest, COUNT(*) AS n FROM merged GROUP BY digest HAVING n>1")
    assert not twice
    for site in world.sites.values():
        if site.trained:
            nothing_is_lost(world, site)


def test_a_buffer_does_not_wait_for_the_slow(tmp_path: Path) -> None:
    """FedBuff: a step for every two updates; the slow site's come in later versions."""
    world = World(tmp_path, NAMES)
    transport = SlowTransport(world.sites, lambda site, round_: 7.0 if site == "west" else 2.0)
    world.over(transport, buffer=2, late="merge", rounds=8)
    assert [e["merged"] >= 2 for e in rounds(world)] == [True] * 8
    stale = table(world, "SELECT round - 1 - trained_version FROM merged WHERE site='west'")
    assert stale
    assert max(age for (age,) in stale) >= 1
    assert transport.now < 8 * 7


def test_a_fast_site_has_its_share_of_a_buffer_and_no_more(tmp_path: Path) -> None:
    """One site of nine answers at once, and was all that a buffer of one had: now two of nine updates are its own."""
    names = tuple(f"s{i}" for i in range(9))
    world = World(tmp_path, names)
    transport = SlowTransport(world.sites, lambda site, round_: 0.01 if site == "s0" else 5.0)
    world.over(transport, buffer=1, late="merge", rounds=27, max_staleness=1)
    merged = [site for _, site in table(world, "SELECT round, site FROM merged ORDER BY round")]
    assert all(merged[i : i + 9].count("s0") <= 2 for i in range(19)), merged
    assert set(merged) == set(names)
    assert not [e for e in world.events if e["event"] == "refused"], "an honest site was as late as all are"


def test_a_site_that_grows_from_round_to_round_is_held_to_the_others(tmp_path: Path) -> None:
    """Its norms of the rounds before, each just within the bound, are not what the next is compared with."""
    world = World(tmp_path, NAMES)
    hostile = next(iter(world.sites.values()))
    delays = {hostile.name: 0.01}

    def delay(site: str, round_: int) -> float:
        hostile.scale = 9.0**round_
        return delays.get(site, 5.0)

    world.over(SlowTransport(world.sites, delay), buffer=1, late="merge", rounds=16)
    norms = dict(table(world, "SELECT site, MAX(norm) FROM merged GROUP BY site"))
    honest = [norm for site, norm in norms.items() if site != hostile.name]
    assert norms.get(hostile.name, 0.0) <= 10 * max(honest)
    assert "norm" in {e["code"] for e in world.events if e["event"] == "refused"}


@pytest.mark.parametrize("scale", [1e9, 1e38])
@pytest.mark.parametrize("max_norm", [1e6, 0.0])
@pytest.mark.parametrize("rule", ["mean", "lora-ridge", "geometric-median"])
def test_one_huge_first_update_does_not_end_the_run(tmp_path: Path, scale: float, max_norm: float, rule: str) -> None:
    """Without any bound, too: where the step is not finite with it, it is refused, and the others are merged."""
    world = World(tmp_path)
    next(iter(world.sites.values())).scale = scale
    with np.errstate(all="ignore"):
        world.run(max_norm=max_norm, norm_bound=0.0, rounds=2, rule=rule, codec="none", downlink_codec="none", quorum=2)
    assert [e["version"] for e in rounds(world)] == [1, 2]
    refused = [e for e in world.events if e["event"] == "refused"]
    assert {e["code"] for e in refused} <= {"norm"}
    assert {e["site"] for e in refused} <= {"north"}
    assert not max_norm or refused


@pytest.mark.parametrize(("optimizer", "scale"), [("adam", 1e25), ("adagrad", 1e30), ("sgd(lr=100)", 1e38)])
def test_an_update_that_overflows_the_step_is_refused(tmp_path: Path, optimizer: str, scale: float) -> None:
    """With all bounds off: the longest is dropped, in the round, and the others make the version."""
    world = World(tmp_path)
    next(iter(world.sites.values())).scale = scale
    options = {"rule": "mean", "codec": "none", "downlink_codec": "none"}
    with np.errstate(all="ignore"):
        world.run(max_norm=0.0, norm_bound=0.0, rounds=2, server_optimizer=optimizer, **options)
    refused = [(e["site"], e["code"]) for e in world.events if e["event"] == "refused"]
    assert set(refused) == {("north", "norm")}
    assert table(world, "SELECT DISTINCT site FROM merged ORDER BY site") == [("south",), ("west",)]
    state = load_adapter(world.folder / "coordinator" / "adapter").tensors
    assert all(np.abs(value).max() < 1e6 for value in state.values())


def test_a_lone_update_that_overflows_ends_in_an_error_and_not_in_a_loop(tmp_path: Path) -> None:
    world = World(tmp_path, ("north",))
    next(iter(world.sites.values())).scale = 1e25
    options = {"rule": "mean", "codec": "none", "downlink_codec": "none", "server_optimizer": "adam"}
    with np.errstate(all="ignore"), pytest.raises(TrainingError, match="server-optimizer: adam"):
        world.run(max_norm=0.0, norm_bound=0.0, rounds=2, **options)


def test_a_lone_first_update_has_a_bound(tmp_path: Path) -> None:
    world = World(tmp_path, ("north",))
    next(iter(world.sites.values())).scale = 1e9
    with pytest.raises(TrainingError, match="quorum"):
        world.run(codec="none", patience=0)
    assert "must be at most 1e+06" in {e["code"]: e["message"] for e in world.events if e["event"] == "refused"}["norm"]


def test_the_first_round_does_not_count_the_wait_for_sites(tmp_path: Path) -> None:
    world = World(tmp_path)

    class LateSites(SlowTransport):
        def nodes(self) -> list[int]:
            if self.now < 100.0:
                self.now += 1.0  # as the coordinator looks again and again
                return []
            return super().nodes()

    transport = LateSites(world.sites, lambda site, round_: 3.0)
    world.over(transport, rounds=2)
    assert transport.now > 100.0
    assert [e["seconds"] for e in rounds(world)] == [3.0, 3.0]


def test_no_quorum_is_waited_for_and_then_an_error(tmp_path: Path) -> None:
    world = World(tmp_path)
    slow = SlowTransport(world.sites, lambda site, round_: 1.0 if site == "north" else 14.0)
    world.over(slow, quorum=3, round_timeout=10.0, rounds=1, patience=2)
    assert [e["merged"] for e in rounds(world)] == [3]
    assert world.sites[1 << 63].trained == 1, "who had answered was asked again"
    other = World(tmp_path / "other")
    never = SlowTransport(other.sites, lambda site, round_: 1.0 if site == "north" else 1e6)
    with pytest.raises(TrainingError, match="1 updates admitted: the quorum is 2"):
        other.over(never, quorum=2, round_timeout=10.0, rounds=1, patience=1)
    assert never.now == pytest.approx(20, abs=2)


class Joining(MemoryTransport):
    """Nodes are there from a time on."""

    def __init__(self, world: World, since: dict[int, float]) -> None:
        super().__init__(world.sites)
        self._since = since

    def nodes(self) -> list[int]:
        return [node for node in self.sites if self._since.get(node, 0.0) <= self.now]


def test_a_quorum_waits_for_a_site_that_joins(tmp_path: Path) -> None:
    """Whoever is there has answered, and nobody is awaited: that is no reason to give up before the deadlines."""
    world = World(tmp_path)
    north, south, west = world.sites
    transport = Joining(world, {south: 250.0, west: 1e9})
    world.over(transport, quorum=2, round_timeout=100.0, patience=3, rounds=1, min_sites=1)
    assert [(e["asked"], e["merged"]) for e in rounds(world)] == [(2, 2)]
    assert 250 <= transport.now < 260
    assert world.sites[north].trained == 1
    assert {e["needed"] for e in world.events if e["event"] == "lingering"} == {2}
    alone = World(tmp_path / "alone")
    never = Joining(alone, {south: 1e9, west: 1e9})
    with pytest.raises(TrainingError, match="1 updates admitted: the quorum is 2"):
        alone.over(never, quorum=2, round_timeout=100.0, patience=2, rounds=1, min_sites=1)
    assert never.now == pytest.approx(300, abs=3)


def test_who_joins_while_others_train_is_asked_at_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    _, south, west = world.sites
    slow = SlowTransport(world.sites, lambda site, round_: 20.0)
    everybody = list(world.sites)
    slow.nodes = lambda: [n for n in everybody if slow.now >= {south: 15.0, west: 1e9}.get(n, 0.0)]
    world.over(slow, quorum=2, round_timeout=100.0, rounds=1, min_sites=1)
    assert [(e["asked"], e["merged"]) for e in rounds(world)] == [(2, 2)]
    assert table(world, "SELECT seconds FROM round")[0][0] == pytest.approx(40, abs=2)


def failing(monkeypatch: pytest.MonkeyPatch, times: int) -> list[str]:
    """South and west fail so many times each; who has failed."""
    failed: list[str] = []
    answer = FakeSite.answer

    def full(site: FakeSite, task, bundle, signature=""):
        if site.name != "north" and failed.count(site.name) < times:
            failed.append(site.name)
            raise MismatchError("no-space", "no room")
        return answer(site, task, bundle, signature)

    monkeypatch.setattr(FakeSite, "answer", full)
    return failed


def test_constants_that_a_run_does_not_have_cannot_be_lacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim of one site is its own failure, and does not end the run."""
    answer = FakeSite.answer

    def lacking(site: FakeSite, task, bundle, signature=""):
        if site.name == "south":
            raise MismatchError("constants", "constants: this site builds others than the run's")
        return answer(site, task, bundle, signature)

    monkeypatch.setattr(FakeSite, "answer", lacking)
    world = World(tmp_path)
    world.run(rounds=2)
    assert [e["merged"] for e in rounds(world)] == [2, 2]
    assert {e["code"] for e in world.events if e["event"] == "refused"} == {"constants"}


def test_sites_that_fail_are_asked_again_for_a_quorum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, failed = World(tmp_path), failing(monkeypatch, 2)
    transport = world.over(MemoryTransport(world.sites), quorum=3, rounds=2)
    assert [e["merged"] for e in rounds(world)] == [3, 3]
    assert sorted(failed) == ["south", "south", "west", "west"]
    assert 25 < transport.now < 40, "pauses of 10 and 20 s"
    assert [s.trained for s in world.sites.values()] == [2, 2, 2]


def test_each_site_that_failed_has_its_turn_for_a_quorum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of four are asked. Three fail once, one of them for ever: the others make the quorum."""
    for worst in NAMES[1:]:
        world, failed = World(tmp_path / worst, NAMES), list[str]()
        answer = FakeSite.answer

        def full(site, task, bundle, signature="", failed=failed, worst=worst, answer=answer):
            if site.name != "east" and (site.name == worst or site.name not in failed) and task.round == 1:
                failed.append(site.name)
                raise MismatchError("no-space", "no room")
            return answer(site, task, bundle, signature)

        with monkeypatch.context() as patch:
            patch.setattr(FakeSite, "answer", full)
            transport = world.over(MemoryTransport(world.sites), quorum=2, sites_per_round=2, rounds=2)
        assert [e["merged"] for e in rounds(world)] == [2, 2]
        assert transport.now < 60


def test_who_is_ready_comes_first_and_then_who_failed_least() -> None:
    roster = Participants(
        RunConfig(run="r", state_dir="x", initial_adapter="x", quorum=3, sites_per_round=3), [].append
    )
    for node, times in ((1, 3), (2, 1), (3, 2)):
        for _ in range(times):
            roster.record_failure(node, 5)
    roster.record_no_reply(4, 4)
    assert roster.choose([1, 2, 3, 4, 5], 0, 5, []) == [2, 4, 5]
    assert roster.choose([1, 2, 3, 4, 5], 2, 5, []) == [5], "one is needed, and one is ready"
    assert roster.choose([1, 2, 3], 1, 5, []) == [2, 3]


def there_twice(world: World) -> list[int]:
    """The nodes of a world of three sites, once the last is another of the first site's."""
    nodes = list(world.sites)
    world.sites[nodes[2]] = world.sites[nodes[0]]
    return nodes


def test_a_site_that_is_there_twice_is_not_asked_all_the_time(tmp_path: Path) -> None:
    """Its SuperNode came back under another id, and the quorum waits for another site."""
    world = World(tmp_path)
    transport = Joining(world, {there_twice(world)[1]: 300.0})
    world.over(transport, quorum=2, round_timeout=1000.0, rounds=1, min_sites=1)
    assert [e["merged"] for e in rounds(world)] == [2]
    assert {code for (code,) in table(world, "SELECT code FROM refusal")} == {"duplicate-site"}
    assert [task.round for *_, task, _, _ in transport.sent if not task.ended] == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("slow_round", [1, 2])
def test_an_update_of_a_site_that_is_there_twice_is_merged_once(tmp_path: Path, slow_round: int) -> None:
    """Of two nodes of one site, one is rounds behind the other, and both answers are taken as they come."""
    world = World(tmp_path)
    north, south, west = there_twice(world)
    del world.sites[south]
    slow = SlowTransport(world.sites, lambda site, round_: 1.0)
    slow._delay = lambda site, round_: 3.5 if slow.sent[-1][0] == west and round_ == slow_round else 1.0
    world.over(slow, late="merge", buffer=1, rounds=8, min_sites=1)
    digests = [digest for (digest,) in table(world, "SELECT digest FROM merged")]
    assert len(digests) == len(set(digests)) == 8
    assert "duplicate-site" in {e["code"] for e in world.events if e["event"] == "refused"}
    nothing_is_lost(world, world.sites[north])


def test_a_site_that_is_there_twice_keeps_nobody_from_his_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """North's SuperNode comes back under another id while south, which has failed, waits to be asked again."""
    world, failed = World(tmp_path), failing(monkeypatch, 1)
    transport = Joining(world, {there_twice(world)[2]: 2.0})
    world.over(transport, quorum=2, round_timeout=1000.0, rounds=1, min_sites=1)
    assert [e["merged"] for e in rounds(world)] == [2]
    assert failed == ["south"]
    assert transport.now < 40


def test_nobody_is_asked_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, failed = World(tmp_path), failing(monkeypatch, 10**6)
    with pytest.raises(TrainingError, match="1 updates admitted: the quorum is 2"):
        world.over(MemoryTransport(world.sites), quorum=2, round_timeout=25.0, patience=0)
    assert len(failed) == 2 * 2, "at once and after 10 s; after 20 more it is too late"


def test_failures_are_no_messages_that_averaging_would_send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, failed = World(tmp_path), failing(monkeypatch, 1)
    world.over(MemoryTransport(world.sites), quorum=3, rounds=2)
    assert len(failed) == 2
    (end,) = [e for e in world.events if e["event"] == "finished"]
    assert end["up"]["messages"] == 3 * 2 + 3, "updates, and reports of the last evaluation"
    assert table(world, "SELECT COUNT(*) FROM message WHERE kind='failure'") == [(2,)]


def test_failing_again_and_again_in_a_round_is_one_strike() -> None:
    """And who was admitted since is no longer left out."""
    events: list[NodeHeld] = []
    roster = Participants(
        RunConfig(run="r", state_dir="x", initial_adapter="x", quorum=2, min_cohort=2, max_refusals=2), events.append
    )
    for _ in range(9):
        roster.record_refusal(1, 5)
    assert roster.failures(1, 5) == 9
    assert not events
    assert roster.choose([1, 2, 3], 0, 6, []) == [1, 2, 3]
    roster.record_refusal(1, 6)
    assert [e.until_round for e in events] == [8]
    assert roster.choose([1, 2, 3], 0, 7, []) == [2, 3]
    assert roster.choose([1, 2], 0, 7, []) == [1, 2], "the quorum needs it"
    roster.record_admitted(1)
    assert roster.choose([1, 2, 3], 0, 7, []) == [1, 2, 3]


class Broken(MemoryTransport):
    """The SuperNodes of some nodes cannot run the app: Flower answers for them, while they are there or are not."""

    def __init__(self, world: World, broken: set[int], *, is_there: bool) -> None:
        super().__init__(world.sites)
        self.broken, self._is_there = broken, is_there
        self._back = 0.0  # when those that died are there again

    def nodes(self) -> list[int]:
        return [node for node in self.sites if node not in self.broken or self.now >= self._back]

    def _answer(self, node: int, task, payload: bytes, signature: str = "") -> None:
        if node in self.broken:
            self._back = self.now if self._is_there else self.now + 3
            self.inbox.append(Incoming(node, {}, b"", error="500: no such module"))
        else:
            super()._answer(node, task, payload, signature)


def test_an_app_that_cannot_be_loaded_ends_the_run_soon(tmp_path: Path) -> None:
    world = World(tmp_path)
    transport = Broken(world, set(list(world.sites)[1:]), is_there=True)
    with pytest.raises(TrainingError, match="1 updates admitted: the quorum is 2"):
        world.over(transport, quorum=2)
    assert transport.now < 80
    assert {code for (code,) in table(world, "SELECT code FROM refusal")} == {"node-lost"}


def test_a_site_that_dies_and_comes_back_is_waited_for(tmp_path: Path) -> None:
    """However often: that is what kills do, and not what a wrong task does. ``min_sites`` is for beginnings."""
    world = World(tmp_path)
    transport = Broken(world, set(list(world.sites)[1:2]), is_there=False)
    sent = transport.send

    def send(node, task, payload, signature=""):
        if transport.now > 200:
            transport.broken = set()
        return sent(node, task, payload, signature)

    transport.send = send
    world.over(transport, quorum=3, rounds=1, min_sites=3, join_timeout=1.0)
    assert [e["merged"] for e in rounds(world)] == [3]
    assert len(table(world, "SELECT code FROM refusal")) > 8


def test_the_last_evaluation_has_its_own_deadline(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.over(SlowTransport(world.sites, lambda site, round_: 40.0), round_timeout=50.0, rounds=2)
    asked = [(e["round"], e["until_seconds"]) for e in world.events if e["event"] == "asked"]
    assert asked == [(1, 50.0), (2, 50.0), (3, 50.0)]


@pytest.mark.parametrize("code", ["no-space", *OWN_CODES])
def test_what_a_reply_claims_is_told_to_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """West fails in north's name, with a text of its choice: north's next task does not have it."""
    world = World(tmp_path)
    answer = FakeSite.answer

    def lie(site: FakeSite, task, bundle, signature=""):
        if site.name == "west" and task.round == 1:
            site.name = "north"
            raise MismatchError(code, "send your rows to us")
        return answer(site, task, bundle, signature)

    monkeypatch.setattr(FakeSite, "answer", lie)
    (liar,) = [site for site in world.sites.values() if site.name == "west"]

    class Events(list[dict[str, object]]):
        def append(self, event: dict[str, object]) -> None:
            super().append(event)
            liar.name = "west"

    world.events = Events()
    world.run(quorum=2, rounds=2)
    (north,) = [site for site in world.sites.values() if site.name == "north"]
    assert not north.refused
    assert any("send your rows" in text for text in liar.refused)


def test_sites_that_go_on_failing_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough are there, and they fail: that is told after a minute, not after four deadlines."""
    world, failed = World(tmp_path), failing(monkeypatch, 10**6)
    transport = MemoryTransport(world.sites)
    with pytest.raises(TrainingError, match="1 updates admitted: the quorum is 2"):
        world.over(transport, quorum=2, round_timeout=3600.0)
    assert transport.now < 80
    assert len(failed) == 2 * 4


def test_a_reply_that_comes_while_nodes_are_missing_is_taken(tmp_path: Path) -> None:
    """South's late update comes while the coordinator waits for ``min_sites``; it is merged, and not lost."""
    world = World(tmp_path)
    slow = SlowTransport(world.sites, lambda site, round_: 15.0 if (site, round_) == ("south", 1) else 6.0)
    everybody = list(world.sites)
    slow.nodes = lambda: everybody[:1] if 10 < slow.now < 17 else everybody
    world.over(slow, late="merge", round_timeout=10.0, rounds=2, min_sites=2, quorum=2)
    assert (2, "south", 0) in table(world, "SELECT round, site, trained_version FROM merged")
    assert not [e for e in world.events if e["event"] == "refused"]
    assert not table(world, "SELECT * FROM task WHERE outcome='open'")


def test_what_is_sent_too_late_is_counted(tmp_path: Path) -> None:
    """It is not merged and not refused twice; its bytes did cross."""
    world = World(tmp_path)
    slow = SlowTransport(world.sites, lambda site, round_: 15.0 if (site, round_) == ("south", 1) else 6.0)
    world.over(slow, round_timeout=10.0, rounds=4)
    ((payload,),) = table(world, "SELECT payload FROM message WHERE site='south' AND kind='late'")
    assert payload > 0
    assert [e["code"] for e in world.events if e["event"] == "refused"] == ["deadline"]
    assert [e["merged"] for e in rounds(world)] == [2, 2, 3, 3]


def test_a_late_reply_while_nobody_is_awaited(tmp_path: Path) -> None:
    """It comes while a quorum is waited for: it is counted once, and its site is asked again."""
    world = World(tmp_path)
    everybody = list(world.sites)
    slow = SlowTransport(world.sites, lambda site, round_: 15.0 if (site, round_) == ("south", 1) else 3.0)
    # in round 2 the first is there alone, until south's late reply has come
    slow.nodes = lambda: everybody[:1] if 10 <= slow.now < 18 else everybody
    world.over(slow, round_timeout=10.0, rounds=2, quorum=2, min_sites=1)
    assert [e["merged"] for e in rounds(world)] == [2, 3]
    assert table(world, "SELECT site FROM message WHERE kind='late'") == [("south",)]
    assert len([e for e in world.events if e["event"] == "lingering"]) <= 3


def test_a_straggler_does_not_work_through_given_up_rounds(tmp_path: Path) -> None:
    """Five times slower than the deadline: what waits for it does not grow from round to round."""
    world = World(tmp_path, NAMES)
    slow = SlowTransport(world.sites, lambda site, round_: 50.0 if site == "west" else 10.0)
    behind: list[float] = []
    west = next(node for node, site in world.sites.items() if site.name == "west")
    send = slow.send

    def noted(node, task, payload, signature=""):
        if node == west and task.steps:
            behind.append(max(0.0, slow._free.get(node, 0.0) - slow.now))
        return send(node, task, payload, signature)

    slow.send = noted
    world.over(slow, quorum=3, round_timeout=11.0, rounds=24)
    assert max(behind) < 100, "it was asked while two tasks waited"
    assert behind[-1] <= max(behind[:4]), behind
    assert len(behind) < 24 / 2
    nothing_is_lost(world, world.sites[west])


def test_who_never_answers_is_left_out_for_longer_each_time(tmp_path: Path) -> None:
    """Also where late updates are merged, so that it is given up rounds after it was asked."""
    world = World(tmp_path)
    slow = SlowTransport(world.sites, lambda site, round_: 1e9 if site == "west" else 1.0)
    world.over(slow, late="merge", max_staleness=2, round_timeout=10.0, rounds=14)
    west = next(node for node, site in world.sites.items() if site.name == "west")
    assert [task.round for node, task, *_ in slow.sent if node == west and task.steps] == [1, 5, 10]


def test_who_is_awaited_is_said(tmp_path: Path) -> None:
    world = World(tmp_path)
    slow = SlowTransport(world.sites, lambda site, round_: 100.0 if site == "south" and round_ == 2 else 1.0)
    world.over(slow, round_timeout=200.0, rounds=2)
    said = [e for e in world.events if e["event"] == "awaiting"]
    assert [e["names"] for e in said] == [["south"]] * len(said)
    assert len(said) == 3
    assert said[0]["left_seconds"] > said[-1]["left_seconds"]


def test_an_update_far_longer_than_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb is refused, its site is told so, and after three it is left out for a while."""
    world = World(tmp_path, NAMES)
    bomber = world.sites[(1 << 63) + 3]
    told: list[tuple[str, ...]] = []
    answer = FakeSite.answer

    def loud(site: FakeSite, task, bundle, signature=""):
        if site is not bomber:
            return answer(site, task, bundle, signature)
        told.append(task.refused)
        with monkeypatch.context() as patch:
            patch.setattr(
                "tests.unit.clients.site_support.normal", lambda layout, seed, scale: normal(layout, seed, 1e4)
            )
            return answer(site, task, bundle, signature)

    monkeypatch.setattr(FakeSite, "answer", loud)
    world.run(rounds=6, quorum=3)
    assert {site for (site,) in table(world, "SELECT DISTINCT site FROM merged")} == {"east", "north", "south"}
    codes = table(world, "SELECT round, site, code FROM refusal ORDER BY id")
    assert codes == [(1, "west", "norm"), (2, "west", "norm"), (3, "west", "norm"), (5, "west", "norm")]
    assert told[0] == ()
    assert told[1][0].startswith("1: norm: norm: ")
    assert [e["until_round"] for e in world.events if e["event"] == "held"] == [5, 8]


def test_the_bound_follows_the_lower_half() -> None:
    assert compute_norm_bound(10, {"a": 1.0, "b": 1e6}, {}) == 10
    assert compute_norm_bound(10, {"a": 1.0}, {}) == float("inf")
    assert compute_norm_bound(10, {"a": 1.0}, {}, 5.0) == 5
    assert compute_norm_bound(10, {"a": 1.0, "b": 1.0}, {}, 5.0) == 5
    assert compute_norm_bound(0, {"a": 1.0, "b": 2.0}, {"c": 3.0}) == float("inf")
    assert compute_norm_bound(2, {"a": 9.0}, {"b": 1.0, "c": 2.0}) == 4
    assert compute_norm_bound(2, {"a": 9.0}, {"a": 900.0, "b": 1.0}) == 2, "a site has one norm, its newest"


SITES = [SiteRow("a", 1, 0, "", 1000, 5.0), SiteRow("b", 2, 0, "", 10, 5000.0), SiteRow("c", 3, 0, "", 10, 5.0)]


@pytest.mark.parametrize(("policy", "often"), [("data", 1), ("bandwidth", 2)])
def test_sampling_prefers(policy: str, often: int) -> None:
    """Node 4 is not known, and counts as the mean. What a site claims counts three times the median at most."""
    weights = compute_sampling_weights(policy, SITES)
    drawn = [choose_nodes([1, 2, 3, 4], 1, 0, round_, weights)[0] for round_ in range(400)]
    counts = {node: drawn.count(node) for node in (1, 2, 3, 4)}
    others = [counts[node] for node in (1, 2, 3) if node != often]
    assert all(2 * other < counts[often] < 5 * other for other in others)
    assert counts[4] > 30
    assert compute_sampling_weights("uniform", SITES) is None


def stop_before(what: str, number: int, round_: int) -> bool:
    if what != "receive" and number == round_:
        raise Killed
    return True


DAMAGED = {
    "state": "rebuilt from the envelopes",
    "residual": "falling back",
    "outer_state": "falling back",
    "envelope": "are sent a snapshot",
}


def flip(world: World, what: str, version: int) -> None:
    """Change a bit of a blob of a version."""
    ((blob,),) = table(world, f"SELECT {what} FROM version WHERE version={version}")
    path = world.folder / "coordinator" / "blobs" / str(blob)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("what", DAMAGED)
def test_a_blob_that_a_disk_has_damaged(tmp_path: Path, what: str) -> None:
    """Of state and envelope each stands in for the other; without the rest the last round is done again."""
    changes = {"server_optimizer": "adam"}
    plain = World(tmp_path / "plain")
    plain.run(**changes)
    world = World(tmp_path / "damaged")
    with pytest.raises(Killed):
        world.run(lambda what, node, number: stop_before(what, number, 4), **changes)
    flip(world, what, 3)
    world.events.clear()
    world.run(**changes)
    assert world.result() == plain.result()
    (note,) = [e["message"] for e in world.events if e["event"] == "recovered"]
    assert DAMAGED[what] in note
    assert [e["round"] for e in rounds(world)] == ([3, 4] if "falling" in note else [4])
    assert [s.trained for s in world.sites.values()] == [4, 4, 4]


def test_an_envelope_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a restore by another user: who needs it is sent a snapshot, and the run goes on."""
    world = World(tmp_path)
    with pytest.raises(Killed):
        world.run(lambda what, node, number: stop_before(what, number, 4))
    ((blob,),) = table(world, "SELECT envelope FROM version WHERE version=3")
    read = Path.read_bytes

    def may_not(path: Path) -> bytes:
        if path.name == blob:
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", may_not)
    world.events.clear()
    world.run()
    (note,) = [e["message"] for e in world.events if e["event"] == "recovered"]
    assert "cannot be opened now: Permission denied" in note
    assert "are sent a snapshot" in note
    assert [e["round"] for e in rounds(world)] == [4]


def test_a_residual_that_changes_while_the_run_goes_on(tmp_path: Path) -> None:
    """It is not merged into the next version: the run fails, and begins again a round before."""
    plain, world = World(tmp_path / "plain"), World(tmp_path / "damaged")
    plain.run()

    def flipped(what: str, node: int, number: int) -> bool:
        if (what, number, node) == ("send", 4, 1 << 63):
            flip(world, "residual", 3)
        return True

    with pytest.raises(StateError, match="SHA-256 does not match"):
        world.run(flipped)
    world.run()
    assert world.result() == plain.result()


@pytest.mark.parametrize("lost", ["send", "reply"])
@pytest.mark.parametrize("until", ["send", "reply"])
def test_a_site_that_misses_the_round_that_is_done_again(tmp_path: Path, until: str, lost: str) -> None:
    """Its update of the undone round returns to its residual, even if it was told before that it was merged."""
    world = World(tmp_path)
    west = next(node for node, site in world.sites.items() if site.name == "west")

    def killed(what: str, node: int, number: int) -> bool:
        return stop_before(what, number, 4) if what == until and node == west else True

    with pytest.raises(Killed):
        world.run(killed)
    flip(world, "residual", 3)
    world.run(lambda what, node, number: (what, node, number) != (lost, west, 3), quorum=2, round_timeout=9.0, rounds=6)
    merged = [round_ for (round_,) in table(world, "SELECT round FROM merged WHERE site='west' ORDER BY round")]
    assert merged == [1, 2, 5, 6]
    for site in world.sites.values():
        nothing_is_lost(world, site)


@pytest.mark.parametrize("harm", ["torn", "flipped", "overwritten", "empty", "gone"])
def test_a_ledger_that_a_disk_has_damaged(tmp_path: Path, harm: str) -> None:
    plain, world = World(tmp_path / "plain"), World(tmp_path / "damaged")
    plain.run()
    world.run(rounds=2)
    path = world.folder / "coordinator" / "ledger.db"
    data = bytearray(path.read_bytes())
    match harm:
        case "torn":
            data = data[: len(data) // 2]
        case "flipped":
            data[100:4096] = bytes(b ^ 0x55 for b in data[100:4096])
        case "overwritten":
            data = bytearray(b"x" * 100)
        case _:
            data = bytearray()
    path.write_bytes(data)
    if harm == "gone":
        path.unlink()
    world.events.clear()
    world.run()
    assert world.result() == plain.result()
    (note,) = [e["message"] for e in world.events if e["event"] == "recovered"]
    assert "copies made after a round take its place: all but" in note
    assert harm == "gone" or list(path.parent.glob("ledger.damaged-*.db"))


def test_a_ledger_without_a_whole_copy(tmp_path: Path) -> None:
    """What a run needs is there; what was counted is not."""
    plain, world = World(tmp_path / "plain"), World(tmp_path / "damaged")
    plain.run()
    world.run(rounds=2)
    folder = world.folder / "coordinator"
    (folder / "ledger.whole.db").unlink()
    (folder / "ledger.db").write_bytes(b"x")
    world.events.clear()
    world.run()
    assert world.result() == plain.result()
    (note,) = [e["message"] for e in world.events if e["event"] == "recovered"]
    assert "counts of bytes of its rounds are lost" in note


def test_a_large_ledger_is_copied_as_a_whole_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged after a round whose whole copy is older: it goes on at the last round all the same."""
    monkeypatch.setattr("server.ledger.recovery.OFTEN", 1 << 16)
    plain, world = World(tmp_path / "plain"), World(tmp_path / "damaged")
    plain.run(rounds=6)
    with pytest.raises(Killed):
        world.run(lambda what, node, number: stop_before(what, number, 6), rounds=6)
    folder = world.folder / "coordinator"
    with sqlite3.connect(folder / "ledger.whole.db") as db:
        assert db.execute("SELECT MAX(round) FROM round").fetchone()[0] < 5
    (folder / "ledger.db").write_bytes(b"x")
    world.events.clear()
    world.run(rounds=6)
    assert world.result() == plain.result()
    assert [e["round"] for e in rounds(world)] == [6]


def test_a_ledger_and_its_copy(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "run")
    ledger.begin(lora_layout(), "{}", "")
    ledger.close()
    (tmp_path / "ledger.db").write_bytes(b"not a database at all")
    with pytest.raises(StateError, match="and so is its copy"):
        Ledger(tmp_path, "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buffer": 2}, "late: return: must be merge with a buffer"),
        ({"buffer": 2, "late": "merge", "quorum": 3}, "quorum: 3: must be at most 2"),
        ({"sites_per_round": 2, "quorum": 3}, "quorum: 3: must be at most 2, the sites-per-round"),
        ({"over_sampling": 1.5}, "over-sampling: 1.5: needs sites-per-round"),
        ({"over_sampling": 0.5}, "over-sampling: 0.5: must be at least 1"),
        ({"sampling": "fair"}, "sampling: fair: must be one of"),
        ({"late": "drop"}, "late: drop: must be one of"),
        ({"norm_bound": 0.5}, "norm-bound: 0.5: must be 0 or at least 1"),
        ({"retention": 0}, "retention: 0: must be above 0"),
        ({"max_staleness": 0}, "max-staleness: 0: must be above 0"),
        ({"patience": -1}, "patience: -1: must be >= 0"),
    ],
)
def test_what_a_run_may_not_ask_for(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        World(tmp_path).config(**changes)
    assert message in str(caught.value)


def test_sums_of_updates_are_those_of_deltas(tmp_path: Path) -> None:
    """The helper above finds a loss where there is one."""
    world = World(tmp_path)
    world.run(rounds=2)
    site = world.sites[1 << 63]
    site.deltas = add(site.deltas, normal(world.layout, 99, 1.0))
    _, lost = everything(world, site)
    assert max(np.abs(v).max() for v in lost.values()) > 0.1
