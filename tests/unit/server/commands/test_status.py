"""``status``, ``history`` and ``stop`` against ledgers that real rounds wrote."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fedcompress.errors import ConfigError, StateError
from fedcompress.storage.locks import hold
from server.commands import history, status, stop
from server.commands.view import RunLiveView, RunPlainView, format_event
from server.ledger.reader import LedgerReader, read_events
from server.ledger.recovery import LEDGER
from server.runs import RunProcesses, save_settings
from server.state_dir import COORDINATOR_LOCK, EVENTS, RUN_LOCK, request_stop, stop_requested
from server.watch.view import take_snapshot
from tests.unit.server.commands.world import config_file, settled
from tests.unit.server.memory import Killed, SlowTransport, World


def facts(world: World) -> dict[str, Any]:
    return status.read_run_status(world.folder / "coordinator", "run")


def kill_in_round_3(event: str, node: int, round_: int) -> bool:
    """The second site's reply to round 3 arrives when the coordinator is gone; the third never answers."""
    if (event, round_) == ("reply", 3) and node == (1 << 63) + 1:
        raise Killed
    return True


@pytest.fixture
def killed(tmp_path: Path) -> World:
    world = World(tmp_path)
    with pytest.raises(Killed):
        world.run(kill_in_round_3)
    settled(world)
    lines = [json.loads(line) for line in (tmp_path / "coordinator" / EVENTS).read_text().splitlines()]
    with (tmp_path / "coordinator" / EVENTS).open("w") as stream:
        stream.writelines(json.dumps({**event, "at": 0.0}) + "\n" for event in lines)
    return world


def test_a_run_that_is_finished(tmp_path: Path) -> None:
    world = World(tmp_path)
    transport = world.run()
    settled(world)
    found = facts(world)
    assert (found["state"], found["rounds_done"], found["rounds"], found["version"]) == ("finished", 4, 4, 4)
    assert (found["awaited"], found["until"], found["last_error"]) == ([], None, None)
    assert found["bytes"] == transport.carried
    quality = [e for e in world.events if e["event"] == "quality"][-1]
    assert found["quality"] == {**{k: quality[k] for k in ("version", "accuracy", "loss", "examples")}, "exact": None}
    assert found["adapter"] == str(tmp_path / "coordinator" / "adapter")


def test_who_is_awaited_since_when(killed: World) -> None:
    """In round 3 the coordinator died while it sent to the second site."""
    assert facts(killed)["state"] == "interrupted"
    assert facts(killed)["awaited"] == []
    with hold(killed.folder / "coordinator" / COORDINATOR_LOCK, "held"):
        found = facts(killed)
        assert found["state"] == "running"
        assert (found["round"], found["rounds_done"]) == (3, 2)
        assert [a["site"] for a in found["awaited"]] == ["north", "south"]
        assert found["until"] == max(a["until"] for a in found["awaited"])
        assert abs(found["awaited"][0]["since"] - time.time()) < 60
        text = "\n".join(status.format_status(found))
        assert "awaited    north, in round 3, asked" in text


def test_an_answer_ends_the_waiting(tmp_path: Path) -> None:
    world, seen = World(tmp_path), list[list[str]]()

    def look(event: str, node: int, round_: int) -> bool:
        if event == "receive":
            with LedgerReader(tmp_path / "coordinator") as reader:
                seen.append([a.site for a in reader.awaited("run")])
        return True

    world.run(look, rounds=2)
    names = ["north", "south", "west"]  # the last answers first
    assert seen[3:6] == [names, names[:2], names[:1]]
    with LedgerReader(tmp_path / "coordinator") as reader:
        assert reader.awaited("run") == []


@pytest.mark.parametrize(
    ("last", "supervisor", "coordinator", "expected"),
    [
        ([], 0, 0, "interrupted"),
        ([], 1, 0, "starting"),
        ([], 1, 1, "waiting"),
        (["start"], 1, 1, "waiting"),
        (["start", "waiting"], 0, 1, "waiting"),
        (["start", "waiting", "asked"], 1, 1, "running"),
        (["start", "asked", "round"], 0, 0, "interrupted"),
        (["start", "failed"], 1, 0, "starting"),
        (["start", "failed"], 0, 0, "failed"),
        (["start", "stopped"], 0, 0, "stopped"),
        (["start", "finished"], 1, 1, "finished"),
    ],
)
def test_states(last: list[str], supervisor: int, coordinator: int, expected: str) -> None:
    events = [{"event": event, "at": 2.0} for event in last]
    assert status.describe_run_state(events, RunProcesses(supervisor, coordinator, 1.0)) == expected


@pytest.mark.parametrize("end", ["stopped", "finished"])
def test_a_run_that_is_begun_again_starts(end: str) -> None:
    """Until its coordinator says so, the last event is of the one before; `stop` must not wait for a round."""
    events = [{"event": "start", "at": 1.0}, {"event": end, "at": 2.0}]
    assert status.describe_run_state(events, RunProcesses(1, 0, 3.0)) == "starting"
    assert status.describe_run_state(events, RunProcesses(1, 1, 3.0)) == "starting"
    assert status.describe_run_state(events, RunProcesses(1, 1, 1.5)) == end
    assert status.describe_run_state(events, RunProcesses(0, 0, 0.0)) == end


def test_another_run_of_the_directory_is_not_the_one_that_works(killed: World) -> None:
    """Locks are of the directory, of which one run is worked on at a time."""
    folder = killed.folder / "coordinator"
    save_settings(folder, {"run": {"run": "other"}})
    with hold(folder / RUN_LOCK, "held by"), hold(folder / COORDINATOR_LOCK, "held by"):
        found = facts(killed)
        assert (found["state"], found["supervisor_pid"], found["coordinator_pid"]) == ("interrupted", None, None)
        assert found["awaited"] == []
        assert status.read_run_status(folder, "other")["coordinator_pid"] is not None
        assert take_snapshot(folder, "run").state == "interrupted"


def test_the_history_is_what_the_coordinator_has_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(tmp_path)
    world.run()
    settled(world)
    assert history.run(history.Options(state=str(tmp_path / "coordinator"), as_json=True)) == 0
    found = json.loads(capsys.readouterr().out)
    said = [e for e in world.events if e["event"] == "round"]
    qualities = {e["version"]: e for e in world.events if e["event"] == "quality"}
    assert len(found["rounds"]) == len(said) == 4
    for row, event in zip(found["rounds"], said, strict=True):
        for key in ("round", "version", "asked", "merged", "late", "uplink_bytes", "downlink_bytes"):
            assert row[key] == event[key], key
        assert row["refused"] == 0
        assert row["quality"]["accuracy"] == qualities[row["version"]]["accuracy"]
    assert found["start"]["loss"] == qualities[0]["loss"]
    assert found["bytes"]["up"] == world.events[-1]["up"]["payload_bytes"]


def test_late_updates_and_what_flower_adds_are_in_the_history(tmp_path: Path) -> None:
    world = World(tmp_path)
    slow = SlowTransport(world.sites, lambda site, round_: 15.0 if (site, round_) == ("south", 1) else 6.0)
    world.over(slow, late="merge", round_timeout=10.0, rounds=3)
    settled(world)
    with LedgerReader(tmp_path / "coordinator") as found:
        rounds = found.rounds("run")
    assert [row.late for row in rounds] == [e["late"] for e in world.events if e["event"] == "round"] == [0, 1, 0]
    assert all(row.downlink_protocol_bytes > 0 == row.uplink_protocol_bytes for row in rounds)


def test_sites_and_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def lost(event: str, node: int, round_: int) -> bool:
        return (event, node, round_) != ("reply", (1 << 63) + 2, 2)

    world = World(tmp_path)
    world.run(lost, quorum=2, rounds=5)  # west is not asked in round 3: it may still work on round 2
    settled(world)
    state = str(tmp_path / "coordinator")
    assert history.run(history.Options(state=state, sites=True, as_json=True)) == 0
    sites = {row["site"]: row for row in json.loads(capsys.readouterr().out)["sites"]}
    assert {name: row["refused"] for name, row in sites.items()} == {"north": 0, "south": 0, "west": 1}
    assert {name: row["messages"] for name, row in sites.items()} == {"north": 7, "south": 7, "west": 5}
    total = world.events[-1]
    assert sum(row["uplink_bytes"] for row in sites.values()) == total["up"]["payload_bytes"]
    assert sum(row["downlink_bytes"] for row in sites.values()) == total["down"]["payload_bytes"]
    assert history.run(history.Options(state=state, refusals=True, as_json=True)) == 0
    (refusal,) = json.loads(capsys.readouterr().out)["refusals"]
    assert (refusal["round"], refusal["code"]) == (2, "deadline")
    for options in ({}, {"sites": True}, {"site_rounds": True}, {"refusals": True}):
        assert history.run(history.Options(state=state, **options)) == 0
    text = capsys.readouterr().out
    assert "west" in text
    assert "deadline" in text
    assert "as int8" in text
    with pytest.raises(ConfigError, match="--site-rounds: True: cannot go with --refusals"):
        history.Options(state=state, site_rounds=True, refusals=True)


def test_a_config_file_stands_for_its_state_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(tmp_path)
    world.run()
    settled(world)
    assert status.run(status.Options(state=str(config_file(world)), as_json=True)) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "finished"
    assert status.run(status.Options(state=str(tmp_path / "coordinator"))) == 0
    assert "4 of 4 are done" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="must be a coordinator's state directory"):
        status.run(status.Options(state=str(tmp_path)))


def test_foreign_text_stays_on_its_line(killed: World) -> None:
    with (killed.folder / "coordinator" / EVENTS).open("a") as stream:
        evil = {
            "at": 1.0,
            "run": "run",
            "event": "refused",
            "round": 3,
            "site": "\x1b[2J\n",
            "code": "x",
            "message": "a\nb",
        }
        stream.write(json.dumps(evil) + "\n{torn")
    lines = status.format_status(facts(killed))
    assert not [c for line in lines for c in line if not c.isprintable()]
    assert len([line for line in lines if "refused" in line]) == 1
    assert format_event({"event": "something new"}, 3, []) == ""


def test_a_ledger_that_is_none(tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_bytes(b"not a database" * 100)
    with pytest.raises(StateError, match="cannot be read"):
        LedgerReader(tmp_path)
    assert read_events(tmp_path) == []


def test_stop_asks_where_a_round_is_open(killed: World, capsys: pytest.CaptureFixture[str]) -> None:
    folder = killed.folder / "coordinator"
    assert stop.run(stop.Options(state=str(folder))) == 1, "nobody works on it"
    assert not stop_requested(folder)
    with hold(folder / COORDINATOR_LOCK, "held"):
        assert stop.run(stop.Options(state=str(folder), as_json=True)) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["now"] is False
    assert stop_requested(folder)


def test_stop_now_ends_the_supervisor(killed: World, capsys: pytest.CaptureFixture[str]) -> None:
    folder = killed.folder / "coordinator"
    code = (
        "import sys, pathlib, signal; from fedcompress.storage.locks import hold\n"
        f"with hold(pathlib.Path({str(folder / RUN_LOCK)!r}), 'x'):\n    print('held', flush=True); signal.pause()\n"
    )
    holding = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holding.stdout is not None
        assert holding.stdout.readline() == "held\n"
        request_stop(folder)
        assert stop.run(stop.Options(state=str(folder), now=True, as_json=True)) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["pid"], found["now"]) == (holding.pid, True)
        assert not stop_requested(folder), "a resumed run must not stop at once"
    finally:
        holding.kill()
        holding.wait()
        if holding.stdout:
            holding.stdout.close()


def test_the_coordinator_stops_between_rounds_and_goes_on(tmp_path: Path) -> None:
    plain, world = World(tmp_path / "plain"), World(tmp_path / "stopped")
    plain.run()

    def ask(event: str, node: int, round_: int) -> bool:
        if round_ == 2:
            request_stop(world.folder / "coordinator")
        return True

    world.run(ask)
    assert world.events[-1]["event"] == "stopped"
    assert max(e["round"] for e in world.events if e["event"] == "round") == 2
    assert not stop_requested(world.folder / "coordinator")
    world.run()
    assert world.events[-1]["event"] == "finished"
    assert world.result() == plain.result()


@pytest.mark.parametrize("kind", [RunPlainView, RunLiveView])
def test_what_is_shown_while_it_runs(
    kind: type[RunPlainView], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path)
    world.run()
    settled(world)
    with kind(tmp_path / "coordinator", "run") as view:
        for event in read_events(tmp_path / "coordinator", "run"):
            view.on_event(event)
        view.show()
    out, err = capsys.readouterr()
    assert out == "", "stdout is for JSON"
    assert "round 4 of 4: merged 3 of 3, up " in err
    assert "finished: " in err
    if kind is RunPlainView:
        assert "last evaluation: north sent" in err
        assert "round 1 of 4: 3 sites asked, until " in err
        assert err.count("accuracy") == 5


@pytest.mark.parametrize("kind", [RunPlainView, RunLiveView])
def test_what_is_shown_does_not_end_a_run(
    kind: type[RunPlainView], killed: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """A ledger that is damaged meanwhile is the coordinator's to mend."""
    folder = killed.folder / "coordinator"
    (folder / LEDGER).write_bytes(b"x" * 8192)
    for suffix in ("-wal", "-shm"):
        (folder / f"{LEDGER}{suffix}").unlink(missing_ok=True)
    with kind(folder, "run") as view:
        view.on_event({"event": "refused", "at": 1.0, "round": 3, "site": "north", "code": "replay", "message": "m"})
        view.show()
    assert "refused north: replay: m" in capsys.readouterr().err
