"""``site up`` and ``down``: two processes kept up, restarts that wait longer, nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from clients.commands import down, up
from clients.commands.supervisor import SiteSupervisor, end_orphans, up_file, up_lock
from clients.site import SiteConfig
from clients.worker.main import lease
from fedcompress.errors import ConfigError, LockedError
from fedcompress.runtime import supervision
from fedcompress.runtime.process_group import ProcessGroup
from fedcompress.runtime.supervision import end_process, put_aside
from fedcompress.storage.locks import hold, holder

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
SAYS = "\x1b[91mERROR \x1b[0m:     Exit Code: 303\nrefused\nbecause\n\nINFO: Finished server process\n"
FAIL = [sys.executable, "-c", f"print({SAYS!r}); raise SystemExit(3)"]


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text("")
    path = tmp_path / "site.toml"
    path.write_text('[site]\nname="north"\nstate_dir="state"\n[model]\npath="model"\n[data]\ntrain="rows.jsonl"\n')
    (tmp_path / "state").mkdir()
    return path


class Kept:
    """A supervisor of stand-ins, with a clock that a test sets."""

    def __init__(self, site_file: Path, node: list[str], worker: list[str], advice: str = "ask") -> None:
        self.site = SiteConfig.load(site_file)
        self.now, self.said = 1000.0, list[str]()
        self.group = ProcessGroup(site_file.parent / "logs", {})
        self.supervisor = SiteSupervisor(
            site=self.site,
            site_file=site_file,
            group=self.group,
            node=node,
            worker=worker,
            advice=advice,
            say=self.said.append,
            clock=lambda: self.now,
            cwd=site_file.parent,
        )

    def until_ended(self, name: str) -> None:
        self.group._running[name].wait(timeout=20)


@pytest.fixture
def groups() -> Iterator[list[ProcessGroup]]:
    found: list[ProcessGroup] = []
    yield found
    for group in found:
        group.stop()


def kept(groups: list[ProcessGroup], *args: Any) -> Kept:
    made = Kept(*args)
    groups.append(made.group.__enter__())
    return made


def test_a_supernode_that_dies_is_started_again_and_waits_longer(site_file: Path, groups: list[ProcessGroup]) -> None:
    it = kept(groups, site_file, FAIL, SLEEP)
    pauses = []
    for _ in range(3):
        it.supervisor.tick()
        it.until_ended("supernode")
        it.supervisor.tick()
        (line,) = [x for x in it.said if "started again" in x]
        pauses.append(line.rsplit(" in ", 1)[1])
        assert "supernode: ended with exit code 3: refused (see " in line
        assert "supernode: ask" in it.said
        it.said.clear()
        it.supervisor.tick()
        assert it.said == [], "it waits"
        it.now += 60
    assert pauses == ["1 s", "2 s", "4 s"]
    it.group.check("worker")


@pytest.mark.parametrize(
    ("detail", "advice"),
    [
        (
            "[SSL: CERTIFICATE_VERIFY_FAILED] unable to get local issuer certificate",
            "not of the CA in root_certificates",
        ),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] Hostname mismatch, certificate is not valid for 'x'.", "lacks the name"),
        ("[code: 2004] Failed to activate SuperNode.", "ask"),
    ],
)
def test_advice_follows_the_reason(site_file: Path, groups: list[ProcessGroup], detail: str, advice: str) -> None:
    """What is wrong with a certificate is not said of the key."""
    text = f"ERROR : Exit Code: 305\nFailed to initialize the connection to the SuperLink.\n{detail}\n"
    it = kept(groups, site_file, [sys.executable, "-c", f"print({text!r}); raise SystemExit(3)"], SLEEP)
    it.supervisor.tick()
    it.until_ended("supernode")
    it.supervisor.tick()
    assert detail in next(line for line in it.said if "started again" in line)
    assert advice in it.said[-1]


def test_a_worker_that_was_there_is_used(site_file: Path, groups: list[ProcessGroup]) -> None:
    it = kept(groups, site_file, SLEEP, SLEEP)
    with lease(it.site.state_dir):
        for _ in range(3):
            it.supervisor.tick()
            it.now += 10
        assert [x for x in it.said if x.startswith("worker")] == [f"worker: pid {os.getpid()} runs already: it is used"]
    it.supervisor.tick()
    assert "worker: started" in it.said[-1]


def test_what_a_killed_up_has_left_is_ended_by_pid_and_birth(site_file: Path) -> None:
    state = site_file.parent / "state"
    ours, stranger = subprocess.Popen(SLEEP), subprocess.Popen(SLEEP)
    try:
        born = psutil.Process(ours.pid).create_time()
        facts = {
            "by": 1,
            "supernode": {"pid": ours.pid, "created": born},
            "worker": {"pid": stranger.pid, "created": born - 100},  # the id was given to another since
        }
        up_file(state).write_text(json.dumps(facts))
        assert end_orphans(state) == [f"supernode (pid {ours.pid})"]
        ours.wait(timeout=10)
        assert stranger.poll() is None
        assert not up_file(state).exists()
        assert end_orphans(state) == []
    finally:
        stranger.kill()
        stranger.wait()
        ours.wait()


def test_a_process_that_does_not_listen_is_killed() -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert not end_process(process.pid, grace=0.3)
    process.wait(timeout=10)
    process.stdout.close()
    assert end_process(process.pid, grace=0.3), "it is gone"


def test_the_second_up_is_refused(site_file: Path) -> None:
    options = up.Options(site=str(site_file), superlink="127.0.0.1:1", insecure=True)
    held = hold(up_lock(site_file.parent / "state"), "held by")
    with held, pytest.raises(LockedError, match=f"with pid {os.getpid()}"):
        up.run(options)
    assert holder(up_lock(site_file.parent / "state")) == 0


def test_up_in_the_foreground_ends_both_on_sigterm(
    site_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pids: list[int] = []
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 2:
            facts = json.loads(up_file(site_file.parent / "state").read_text())
            assert facts["by"] == os.getpid()
            pids.extend(facts[name]["pid"] for name in ("worker", "supernode"))
            os.kill(os.getpid(), 15)

    monkeypatch.setattr(up, "node_command", lambda options, file: SLEEP)
    monkeypatch.setattr(up, "worker_command", lambda file: SLEEP)
    monkeypatch.setattr(up, "time", _Clock(sleep))
    assert up.run(up.Options(site=str(site_file), superlink="127.0.0.1:1", insecure=True)) == 0
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)
    out = capsys.readouterr().out
    assert "--insecure: the connection to 127.0.0.1:1 is not encrypted" in out
    assert out.endswith("north: down\n")
    assert not up_file(site_file.parent / "state").exists()
    assert down.run(down.Options(site=str(site_file))) == 1


class _Clock:
    def __init__(self, sleep: Any) -> None:
        self.sleep, self.monotonic, self.strftime = sleep, time.monotonic, time.strftime


def test_tls_is_the_default(site_file: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("x")
    plain = up.node_command(up.Options(site="s", superlink="h:1"), site_file)
    assert "--insecure" not in plain
    assert f'site-config="{site_file}"' in plain
    given = up.Options(site="s", superlink="h:1", root_certificates=str(tmp_path / "ca.crt"))
    assert tmp_path / "ca.crt" in up.node_command(given, site_file)
    assert "--insecure" in up.node_command(up.Options(site="s", superlink="h:1", insecure=True), site_file)


def test_advice_is_about_the_key(tmp_path: Path) -> None:
    key = tmp_path / "north.node.key"
    key.write_text("")
    given = up.Options(site="s", superlink="h:1", auth_supernode_private_key=str(key))
    assert "until the coordinator has registered it, and may do so for 60 s" in up.explain_exit(given)
    assert "fedcompress certs new --node NAME" in up.explain_exit(up.Options(site="s", superlink="h:1"))
    assert up.explain_exit(up.Options(site="s", superlink="h:1", insecure=True)) == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"superlink": "host"}, "must be HOST:PORT"),
        ({"superlink": "https://host:1"}, "must be HOST:PORT"),
        ({"superlink": "host:70000"}, "must be HOST:PORT"),
        ({"superlink": "h:1", "root_certificates": "/absent"}, "--root-certificates: /absent"),
        ({"superlink": "h:1", "auth_supernode_private_key": "/absent"}, "--auth-supernode-private-key"),
        ({"superlink": "h:1", "insecure": True, "root_certificates": "/x"}, "cannot go with"),
        ({"superlink": "h:1", "insecure": True, "auth_supernode_private_key": "/x"}, "keys need TLS"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        up.Options(site="site.toml", **options)


def test_a_large_log_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "MAX_LOG", 3)
    (tmp_path / "a.log").write_text("long")
    put_aside(tmp_path / "a.log")
    assert [f.name for f in tmp_path.iterdir()] == ["a.log.1"]
