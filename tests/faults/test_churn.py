"""Half of the answers never come, sites join in every round, and stragglers take five times as long.

Each round closes by its deadline on the coordinator's clock, which stands still but where it waits; and at the end each
task, byte and update is accounted for.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcompress.adapters import adapter_digest
from fedcompress.types import Layout
from server.coordinator import Coordinator
from tests.faults.churn import SLOWER, Churn, ChurningSites, Seat
from tests.faults.load import prepare
from tests.faults.record import record
from tests.faults.simulated import SimulatedSites
from tests.unit.server.memory import CONFIG, World, run_config
from tests.unit.server.round.test_round import everything

DEADLINE = 30.0
EVENTS = ("send", "reply")
MODES: dict[str, dict[str, Any]] = {
    "return": {"late": "return"},
    "merge": {"late": "merge", "max_staleness": 6},
    "buffer": {"late": "merge", "max_staleness": 6, "buffer": 4},
}
WAITING = {"max_staleness": 6, "round_timeout": DEADLINE}


def table(state: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(state / "ledger.db") as database:
        return database.execute(query).fetchall()


def check_deadlines(events: list[dict[str, Any]], transport: ChurningSites, rounds: int) -> list[dict[str, Any]]:
    """Rounds, each of which was closed by its deadline; none waited for a quorum once more."""
    closed = [e for e in events if e["event"] == "round"]
    assert [e["round"] for e in closed] == list(range(1, rounds + 1))
    assert max(e["seconds"] for e in closed) <= DEADLINE
    assert transport.now <= DEADLINE * (rounds + 2), "with the last evaluation, and the word that it was the last"
    assert not [e for e in events if e["event"] == "warning" and "quorum" in e["message"]]
    return closed


def check_books(state: Path, closed: list[dict[str, Any]], transport: ChurningSites) -> Counter[str]:
    """How tasks ended; every task, byte, refusal and merged update is there once."""
    outcomes = Counter(dict(table(state, "SELECT outcome, COUNT(*) FROM task GROUP BY outcome")))
    assert outcomes.total() == len(transport.sent)
    assert set(outcomes) <= {*["admitted", "deadline", "stale", "surplus", "finished", "told", "untold"]}, (
        "none open, refused or lost"
    )
    for reason in ("deadline", "stale"):
        assert table(state, f"SELECT COUNT(*) FROM refusal WHERE code='{reason}'") == [(outcomes[reason],)]
    assert table(state, "SELECT COUNT(*) FROM refusal WHERE code NOT IN ('deadline', 'stale')") == [(0,)]
    carried = dict(table(state, "SELECT direction, SUM(payload) FROM message GROUP BY direction"))
    assert carried == {"up": transport.delivered, "down": transport.carried["down"]}
    (answers,) = table(state, "SELECT COUNT(*) FROM message WHERE direction='up' AND kind NOT IN ('late', 'end')")[0]
    assert answers == outcomes["admitted"]
    ((merged, once),) = table(state, "SELECT COUNT(*), COUNT(DISTINCT digest) FROM merged")
    last = f"round={closed[-1]['round'] + 1}"
    ((reports,),) = table(state, f"SELECT COUNT(*) FROM task WHERE outcome='admitted' AND {last}")
    assert merged == once == sum(e["merged"] for e in closed) == outcomes["admitted"] - reports
    return outcomes


def check_churn(state: Path, churn: Churn, closed: list[dict[str, Any]], transport: ChurningSites, mode: str) -> None:
    """It was what it is to be: half dropped out, new sites took part in every round, stragglers were late."""
    sites = list(transport.sites.values())
    slow = {site.name for number, site in enumerate(sites) if churn.is_slow(number)}
    merged = table(state, "SELECT site, round, trained_version FROM merged")
    assert all(round_ - 1 > version for site, round_, version in merged if site in slow)
    assert bool(slow & {site for site, _, _ in merged}) == (mode != "return")
    assert sum(e["late"] for e in closed) == sum(round_ - 1 > version for _, round_, version in merged)
    first = dict(table(state, "SELECT node, MIN(round) FROM task GROUP BY node"))
    joined = Counter(first.values())
    for event in closed[1:]:
        assert joined[event["round"]] == churn.joins, "each is asked in the round after it came"
    lost = sum(not transport.fate(event, node, task.round) for node, task, _, _ in transport.sent for event in EVENTS)
    assert 0.4 < lost / len(transport.sent) < 0.6


@pytest.mark.parametrize("mode", MODES)
def test_churn(mode: str, tmp_path: Path) -> None:
    """Real sites: what each has trained was merged once, waits to be, or is in its residual."""
    rounds, churn = 8, Churn(first=8, joins=2, pace=DEADLINE, stragglers=4)
    world = World(tmp_path, tuple(f"site-{number:02}" for number in range(8 + 2 * rounds)))
    transport = ChurningSites(world.sites, churn)
    world.over(transport, rounds=rounds, min_sites=8, **{**WAITING, **MODES[mode]})
    closed, state = check_deadlines(world.events, transport, rounds), tmp_path / "coordinator"
    check_books(state, closed, transport)
    check_churn(state, churn, closed, transport, mode)
    for site in world.sites.values():
        if site.trained:
            deltas, lost = everything(world, site)
            for name, value in lost.items():
                assert np.abs(value).max() <= 1e-5 * max(1.0, np.abs(deltas[name]).max()), (site.name, name)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", MODES)
def test_churn_of_many(mode: str, tmp_path: Path) -> None:
    rounds, churn = 40, Churn(first=200, joins=5, pace=DEADLINE, stragglers=5)
    prepare(tmp_path, 64, 2, "lora-ternary")
    layout = Layout.from_json((tmp_path / "layout.json").read_text())
    crowd = SimulatedSites(0, layout, adapter_digest(CONFIG), tmp_path / "steps")
    transport = ChurningSites({n: Seat(crowd, n) for n in range(200 + churn.joins * rounds)}, churn)
    changes = {**WAITING, **MODES[mode], **({"buffer": 50} if mode == "buffer" else {})}
    config, events = run_config(tmp_path, 200, rounds=rounds, rule="mean", **changes), list[dict[str, Any]]()
    coordinator = Coordinator(config, transport, events.append, transport.clock)
    coordinator.run()
    coordinator.ledger.close()
    closed, state = check_deadlines(events, transport, rounds), tmp_path / "coordinator"
    outcomes = check_books(state, closed, transport)
    check_churn(state, churn, closed, transport, mode)
    longest, merged = max(e["seconds"] for e in closed), sum(e["merged"] for e in closed)
    late = sum(e["late"] for e in closed)
    note = f"closed after at most {longest:.0f} s of {DEADLINE:.0f} s, {merged} merged, {late} of them late"
    name = f"50 % dropout, 5 joins a round, a fifth {SLOWER} x slower: {mode}"
    record("churn", name, outcomes.total(), note)
