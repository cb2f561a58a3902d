"""The commands of a first federation, in their order: kits, sites that join, a signed round with TLS."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from server.ledger.reader import read_events
from tests.deployment import SITES, Deployment, call, deployed, write_base
from tests.tiny import write_rows

SECRET = "correct horse battery"


class Joined(Deployment):
    """A coordinator with certificates and a key, and sites that have nothing but a kit, a model and rows."""

    def __init__(self, folder: Path, base: Path, *more: Any) -> None:
        super().__init__(folder, base, *more)
        tls = 'ca = "certs/ca.crt"\ncertificate = "certs/server.crt"\nkey = "certs/server.key"\nnode_keys = "certs"\n'
        self.config.write_text(self.config.read_text().replace("insecure = true\n", tls))
        call("certs", "new", "--host", "127.0.0.1", "-o", folder / "certs")
        call("keys", "new", "coordinator", "-o", self.state)
        (folder / "secret").write_text(SECRET)
        for number, name in enumerate(SITES):
            self.files[name] = self.join(name, number, base)

    def join(self, name: str, number: int, base: Path) -> Path:
        """Make a kit, have the site join, and register what it sends back; return its site.toml."""
        secret = ["--passphrase-file", self.folder / "secret"]
        known = ["--coordinator", f"127.0.0.1:{self.port}", "--coordinator-key", self.state / "coordinator.pub"]
        files = ["--root-certificates", self.folder / "certs" / "ca.crt", "--template", base / "initial"]
        call("site", "kit", name, *known, *files, *secret, "-o", self.folder / f"{name}.kit")
        site = self.folder / "sites" / name
        write_rows(self.folder / f"{name}.jsonl", 48, number)
        own = ["--model", base / "model", "--train", self.folder / f"{name}.jsonl", "--yes"]
        call("site", "join", self.folder / f"{name}.kit", "-d", site, *own, *secret)
        shutil.copy(site / f"{name}.node.pub", self.folder / "certs")
        call("keys", "register", site / f"{name}.pub", "--site", name, "--state-dir", self.state)
        file = site / "site.toml"
        file.write_text(file.read_text().replace('kind = "deepspeed"', 'kind = "accelerate"'))
        return file

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "require-signatures": True}

    def sites_up(self) -> None:
        for file in self.files.values():
            self.start("site", "up", file, environment=self.at_sites)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_from_kits_to_a_round(tmp_path: Path) -> None:
    """Each site needs one command; both are in the round, with signatures, and both have the model at the end."""
    with deployed(tmp_path / "run", write_base(tmp_path), 1, kind=Joined) as it:
        it.finish(it.start("run", it.config, "--json"))
        assert [(r["asked"], r["merged"]) for r in it.rounds()] == [(2, 2)]
        said = (it.folder / "commands.log").read_text()
        for name, file in it.files.items():
            call("site", "export", file, "-o", it.folder / "exported" / name)
            status = json.loads(call("site", "status", file, "--json").stdout)
            assert [(run["ended"], run["version"]) for run in status["runs"]] == [("finished", 1)]
            for part in ("adapter_model.safetensors", "adapter_config.json"):
                assert (it.folder / "exported" / name / part).read_bytes() == (it.state / "adapter" / part).read_bytes()
    events = list(read_events(it.state))
    assert {e["site"] for e in events if e["event"] == "reply"} == set(SITES)
    assert not [e for e in events if e["event"] == "refused"]
    assert f"connected to 127.0.0.1:{it.port} since" in said
