"""A clock that is wrong by an hour, or jumps: no update is lost, and what is refused for it is said as that."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from fedcompress.demo.federation import Federation
from fedcompress.identity.audit import verify
from fedcompress.identity.certs import CertOptions, make_certs
from fedcompress.runtime.process_group import ProcessGroup, free_port, script, wait_until
from tests.faults.chaos import Chaos
from tests.faults.record import record
from tests.unit.clients.commands.test_init import make_site

HERE = Path(__file__).resolve().parent
VARIABLE, HOUR = "FEDCOMPRESS_TEST_CLOCK", 3600


def clock(told: str) -> dict[str, str]:
    """Variables of a process whose clock is wrong."""
    paths = [str(HERE / "clock"), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    return {VARIABLE: told, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def python(code: str, told: str) -> str:
    """What some lines print in a process whose clock is wrong."""
    environment = {**os.environ, **clock(told)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_clock_is_as_wrong_as_it_says() -> None:
    code = "import time; from datetime import datetime, UTC; print(int(time.time()), datetime.now(UTC).timestamp())"
    right = float(python(code, "0").split()[0])
    for told, wrong in (("3600", HOUR), ("-3600", -HOUR)):
        assert all(abs(float(t) - right - wrong) < 60 for t in python(code, told).split())
    first, second = (float(t) for t in python(code, "jump:3600").split())
    assert abs(first - second - 2 * HOUR) < 60


def digests(folder: Path) -> list[tuple[int, str]]:
    with sqlite3.connect(folder / "coordinator" / "ledger.db") as db:
        merged = db.execute("SELECT round, COUNT(*), COUNT(DISTINCT site) FROM merged GROUP BY round").fetchall()
        assert merged == [(n, 3, 3) for n in range(1, 5)], "an update was lost, or counted twice"
        found: list[tuple[int, str]] = db.execute("SELECT version, digest FROM version ORDER BY version").fetchall()
        return found


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[tuple[int, str]]]:
    folder = tmp_path_factory.mktemp("calm")
    return Chaos(folder, 4, 0).run(), digests(folder)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("told", ["3600", "-3600", "jump:3600"])
@pytest.mark.parametrize("who", ["coordinator", "north"])
def test_no_update_is_lost(tmp_path: Path, who: str, told: str, calm: tuple[bytes, list[tuple[int, str]]]) -> None:
    """Deadlines are on the monotonic clock, and nothing that is compared has a time in it."""
    chaos = Chaos(tmp_path, 4, 0, variables={who: clock(told)})
    assert (chaos.run(), digests(tmp_path)) == calm
    record("clock", f"{who}: {told} s", 4, "same adapter, every round merged each site once")


def test_the_audit_log_goes_on_when_the_clock_goes_back(tmp_path: Path) -> None:
    for told in ("3600", "-3600", "jump:3600"):
        code = "from pathlib import Path\nfrom fedcompress.identity.audit import AuditLog\n"
        python(f"{code}AuditLog(Path({str(tmp_path)!r})).append('round-asked', round=1)", told)
    found = verify(tmp_path)
    assert (found.ok, found.lines, found.unsealed) == (True, 3, 0)


# --- what a site is told ---


def doctor(folder: Path, told: str, *options: object) -> dict[str, dict[str, str]]:
    """Checks by name, of the real command on a clock that is wrong."""
    if not (folder / "site.toml").exists():
        make_site(folder)
    command = [sys.executable, "-m", "fedcompress", "site", "doctor", folder / "site.toml", "--json", *options]
    environment = {**os.environ, **clock(told)}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False)
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


@pytest.mark.slow
def test_doctor_says_that_the_clock_is_wrong(tmp_path: Path, dated_host: str) -> None:
    for told in ("3600", "-3600"):
        found = doctor(tmp_path, told, "--superlink", dated_host, "--insecure")["clock"]
        assert found["status"] == "fail"
        assert re.fullmatch(r"differs from the SuperLink's by 3\d{3} s: signed messages are refused", found["text"])
        assert "NTP" in found["remedy"]
    assert doctor(tmp_path, "0", "--superlink", dated_host, "--insecure")["clock"]["status"] == "ok"


def test_a_site_that_is_an_hour_behind_new_certificates(tmp_path: Path) -> None:
    """They begin ten minutes before they are made, by the clock of who makes them."""
    make_certs(CertOptions(hosts=("127.0.0.1",)), tmp_path / "certs")
    found = doctor(tmp_path, "-3600", "--root-certificates", tmp_path / "certs" / "ca.crt")["certificates"]
    assert found["status"] == "fail"
    assert re.search(r"begins at .* UTC, in (49|50) min by this clock", found["text"])
    assert found["remedy"] == "set this machine's clock"


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("told", ["3600", "-3600"])
def test_a_supernode_that_signs_at_another_hour_is_refused(tmp_path: Path, told: str) -> None:
    """By Flower, which takes signed messages of the last 300 s; with the right clock the same key gets in."""
    certs = tmp_path / "certs"
    make_certs(CertOptions(hosts=("127.0.0.1",), nodes=("north",)), certs)
    with Federation(tmp_path, {}, certs=certs) as federation:
        federation.start()
        federation.register_node("north")
        group = federation.group
        command = [script("flower-supernode"), "--superlink", f"127.0.0.1:{federation.port}", "--max-retries", "1"]
        command += ["--root-certificates", certs / "ca.crt", "--auth-supernode-private-key", certs / "north.node.key"]
        refused = group.logs / "superlink.log", 'activate-node HTTP/1.1" 401'  # the SuperNode itself does not say why
        for name, variables, (log, sign) in (
            ("wrong", clock(told), refused),
            ("right", clock("0"), (group.logs / "right.log", "SuperNode ID:")),
        ):
            with ProcessGroup(group.logs, {**group.env, **variables}) as started:
                started.start(name, [*command, "--port", str(free_port())], cwd=tmp_path)
                wait_until(
                    lambda log=log, sign=sign: sign in log.read_text(errors="replace"),
                    timeout=90,
                    what=name,
                    alive=lambda: group.check("superlink"),
                )
        assert "SuperNode ID:" not in (group.logs / "wrong.log").read_text(errors="replace")
    record("clock", f"SuperNode: {told} s", 1, "refused by Flower until its clock is right")
