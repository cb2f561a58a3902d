"""``fedcompress run`` and ``site up`` as they are by default: TLS, and only SuperNodes whose keys are registered."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fedcompress.identity.certs import CertOptions, make_certs
from server.commands.processes import find_new_keys, format_registration, has_nodes
from server.ledger.reader import read_events
from server.settings import load_settings
from server.state_dir import SUPERLINK_DB
from tests.deployment import ENVIRONMENT, SITES, Deployment, deployed, write_base

REFUSED = "Failed to activate SuperNode"


class Trusted(Deployment):
    """With what `certs new` makes; of the coordinator's keys for that, only the files are set."""

    def __init__(self, folder: Path, base: Path, *more: Any) -> None:
        super().__init__(folder, base, *more)
        make_certs(CertOptions(hosts=("127.0.0.1",), nodes=SITES), folder / "certs")
        files = {"ca": "ca.crt", "certificate": "server.crt", "key": "server.key"}
        lines = "".join(f'{name} = "certs/{file}"\n' for name, file in files.items())
        self.config.write_text(self.config.read_text().replace("insecure = true\n", lines))
        for name, file in self.files.items():
            link = {"address": f"127.0.0.1:{self.port}", "root_certificates": "certs/ca.crt"}
            link["node_key"] = f"certs/{name}.node.key"
            said = "".join(f"{key} = {json.dumps(value)}\n" for key, value in link.items())
            file.write_text(f"{file.read_text()}\n[superlink]\n{said}")

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "min-sites": 1, "quorum": 1}

    def sites_up(self) -> None:
        for file in self.files.values():
            self.start("site", "up", file, environment=self.at_sites)

    def log(self) -> str:
        """What all commands have said."""
        return (self.folder / "commands.log").read_text()

    def supernode_log(self, name: str) -> str:
        """What a site's SuperNode has said."""
        file = self.folder / name / "logs" / "supernode.log"
        return file.read_text() if file.exists() else ""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_folder_of_keys_is_registered(tmp_path: Path) -> None:
    """Once: a second start leaves out a key that was unregistered since, and takes a new one."""
    with deployed(tmp_path / "run", write_base(tmp_path), 1, kind=Trusted) as it:
        assert isinstance(it, Trusted)
        it.config.write_text(it.config.read_text().replace("[run]", 'node_keys = "certs"\n[run]', 1))
        config = load_settings(it.config).coordinator
        assert [path.name for path in find_new_keys(config)] == [f"{name}.node.pub" for name in sorted(SITES)]
        it.finish(it.start("run", it.config, "--json"))
        assert {e["site"] for e in read_events(it.state) if e["event"] == "reply"}
        assert find_new_keys(config) == []
        assert "no SuperNode's key is registered" not in it.log()
        database = config.state_path / SUPERLINK_DB
        with sqlite3.connect(database) as db:
            db.execute("UPDATE node SET unregistered_at='2026-01-01'")
        assert find_new_keys(config) == []
        assert not has_nodes(database)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_only_a_registered_supernode_is_let_in(tmp_path: Path) -> None:
    """The run says that nobody is registered, and how; the command that it says lets north in, and south stays out."""
    with deployed(tmp_path / "run", write_base(tmp_path), 1, kind=Trusted) as it:
        assert isinstance(it, Trusted)
        run = it.start("run", it.config, "--json")
        command = format_registration(load_settings(it.config).coordinator)
        it.until(lambda: command in it.log(), "the hint", run)
        assert "no SuperNode's key is registered, so no site can join" in it.log()
        for name in SITES:
            it.until(lambda name=name: REFUSED in it.supernode_log(name), f"refusal of {name}", run)
        assert it.status()["state"] in ("starting", "waiting")
        register = command.replace("NAME.node.pub", str(it.folder / "certs" / "north.node.pub"))
        subprocess.run(["sh", "-c", register], check=True, env=ENVIRONMENT, timeout=60, capture_output=True)
        it.finish(run)
        assert [(r["asked"], r["merged"]) for r in it.rounds()] == [(1, 1)]
    assert {e["site"] for e in read_events(it.state) if e["event"] == "reply"} == {"north"}
    assert "SuperNode ID:" not in it.supernode_log("south")
    assert "until the coordinator has registered it" in it.log()
