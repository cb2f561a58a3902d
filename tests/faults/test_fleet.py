"""Real SuperNodes, many of them; and payloads of every size, through Flower as it is."""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedcompress.adapters import load_adapter
from fedcompress.demo.federation import Federation
from fedcompress.runtime.process_group import wait_until
from server.ledger.reader import read_events
from tests.deployment import words_of
from tests.faults.fleet import submit, variables, write_app
from tests.faults.record import record
from tests.faults.simulated import record_steps
from tests.unit.server.memory import initial_adapter

MIB = 1 << 20
# Sites x rounds x sites that a round asks. A SuperNode takes 0.23 GiB, and the process that Flower starts for each
# message 0.13 GiB and 2 s of a core.
SITES, ROUNDS, ASKED = (int(n) for n in os.environ.get("FEDCOMPRESS_FLEET", "64x20x24").split("x"))
JOINING = 6  # SuperNodes at once
SIZES = json.loads(os.environ.get("FEDCOMPRESS_PAYLOADS", "[1000, 1000000, 10000000, 100000000, 1000000000]"))


class Fleet(Federation):
    """Starts SuperNodes a few at a time.

    Without a key of its own, one whose registration the SuperLink has not answered in time tries again, is told that it
    is known already, and gives up. `site up` would start it again.
    """

    started = 0

    def start_node(self, name: str, address: str) -> None:
        log = self.folder / "logs" / "superlink.log"
        wait_until(
            lambda: self.started - log.read_text(errors="replace").count("Activated node_id=") < JOINING,
            timeout=300,
            what=f"place for {name}",
            alive=lambda: self.group.check("superlink"),
        )
        super().start_node(name, address)
        self.started += 1


def peak(federation: Federation, what: str) -> int:
    """Most resident bytes of the processes of the federation whose command has a word."""
    found = [size for name, size in federation.group.memory().items() if what in name]
    return max(found, default=0)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_payloads_from_a_kilobyte_to_a_gigabyte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each goes to a site and back whole, or the transport says why not; nothing hangs."""
    monkeypatch.setenv("PYTHONPATH", variables()["PYTHONPATH"])
    out = tmp_path / "found.jsonl"
    config = {"out": str(out), "sizes": json.dumps(SIZES)}
    app = write_app(tmp_path / "app", "tests.faults.fleet.payloads", "tests.faults.fleet.echo", config)
    with Federation(tmp_path, {"echo": tmp_path / "echo.toml"}, warm=False, count=False) as federation:
        federation.start()
        submit(federation, app)
        rows: list[dict[str, Any]] = []
        for number, size in enumerate(SIZES):
            wait_until(
                lambda number=number: out.exists() and len(out.read_text().splitlines()) > number,
                timeout=900,
                what=f"{size} bytes",
                alive=lambda: federation.group.check("superlink", "supernode-echo"),
            )
            rows.append(json.loads(out.read_text().splitlines()[number]))
            rows[-1]["superlink"] = peak(federation, "superlink")
    for row in rows:
        assert row["same"] or row["error"], row
        assert row["same"] or row["size"] > 100_000_000, row
        what = "there and back whole" if row["same"] else row["error"]
        memory = f"coordinator {row['peak'] / MIB:.0f} MiB, SuperLink {row['superlink'] / MIB:.0f} MiB"
        record("payload", f"{row['size']:,} bytes", 1, f"{what}, {row['seconds']:.1f} s, peak {memory}")


@pytest.mark.chaos
@pytest.mark.timeout(7200)
def test_many_real_supernodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real coordinator, SuperLink and SuperNodes; sites replay recorded updates instead of training.

    It ends with the last round: the evaluation after it would ask all sites at once.
    """
    monkeypatch.setenv("PYTHONPATH", variables()["PYTHONPATH"])
    initial_adapter(tmp_path)
    record_steps(tmp_path / "steps", load_adapter(tmp_path / "initial").layout, "lora-ternary")
    state = tmp_path / "coordinator"
    config = {"run": "fleet", "state-dir": str(state), "initial-adapter": str(tmp_path / "initial"), "rounds": ROUNDS}
    config |= {
        "min-sites": SITES,
        "sites-per-round": ASKED,
        "quorum": ASKED,
        "round-timeout": 1200.0,
        "join-timeout": 1200.0,
        "seed": 3,
    }
    config |= {"codec": "lora-ternary", "downlink-codec": "lora-ternary", "rule": "mean", "require-signatures": False}
    app = write_app(tmp_path / "app", "tests.faults.fleet.coordinating", "tests.faults.fleet.replaying", config)
    files = {f"site-{number}": tmp_path / f"site-{number}.toml" for number in range(1, SITES + 1)}
    began = time.monotonic()
    # at the tenth of a second that suits a demo, the looks for work of 64 SuperNodes take more than two cores
    with Fleet(tmp_path, files, warm=False, count=False, look=2.0) as federation:
        federation.start()
        submit(federation, app)
        most: dict[str, int] = {}
        nodes = 0
        for event in federation.events(state / "events.jsonl", timeout=7000):
            if event["event"] == "round":
                for what in ("flower-superlink", "serverapp", "supernode"):
                    most[what] = max(most.get(what, 0), peak(federation, what))
                names = [" ".join(words_of(p)[:2]) for p in psutil.Process().children(recursive=True)]
                nodes = max(nodes, sum("flower-supernode" in name for name in names))
                if event["round"] == ROUNDS:
                    break
            assert event["event"] != "failed", event
    rounds = [e for e in read_events(state) if e["event"] == "round"]
    assert [e["merged"] for e in rounds] == [ASKED] * ROUNDS
    assert len({site for e in rounds for site in e["updates"]}) == ASKED * ROUNDS
    assert nodes >= SITES
    seconds = statistics.median(e["seconds"] for e in rounds)
    note = f"{seconds:.0f} s a round (median), {time.monotonic() - began:.0f} s in all, peak MiB: "
    note += ", ".join(f"{what} {size / MIB:.0f}" for what, size in most.items())
    record("load", f"{SITES} real SuperNodes x {ROUNDS} rounds of {ASKED}", ASKED * ROUNDS, note)
