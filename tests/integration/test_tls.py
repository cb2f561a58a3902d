"""A real SuperLink with TLS and node keys: who gets in, and a round in which everybody signs."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from clients.network.connection import classify_reason, judge_log
from fedcompress.demo.federation import Federation
from fedcompress.identity import PrivateKey, PublicKey, Registry
from fedcompress.identity.audit import verify
from fedcompress.identity.certs import CertOptions, make_certs
from fedcompress.identity.registry import COORDINATOR
from fedcompress.runtime.process_group import free_port, script, wait_until
from tests.site_support import run_federation


@pytest.mark.timeout(400)
def test_a_superlink_knows_its_nodes_and_a_node_its_superlink(tmp_path: Path) -> None:
    """A registered key gets in; one that is not registered, and a node with another CA, do not."""
    certs, other = tmp_path / "certs", tmp_path / "other"
    make_certs(CertOptions(hosts=("127.0.0.1",), nodes=("north", "south")), certs)
    make_certs(CertOptions(hosts=("127.0.0.1",)), other)
    with Federation(tmp_path, {}, certs=certs) as federation:
        federation.start()
        federation.register_node("north")
        address, group = f"127.0.0.1:{federation.port}", federation.group
        for name, root, key in (
            ("registered", certs, "north"),
            ("unknown", certs, "south"),
            ("stray", other, "north"),
        ):
            command = [script("flower-supernode"), "--superlink", address, "--port", str(free_port())]
            command += ["--root-certificates", root / "ca.crt", "--max-retries", "1"]
            group.start(name, [*command, "--auth-supernode-private-key", certs / f"{key}.node.key"], cwd=tmp_path)

        def log(name: str) -> str:
            return (tmp_path / "logs" / f"{name}.log").read_text(errors="replace")

        signs = {
            "registered": "SuperNode ID:",
            "unknown": "Failed to activate SuperNode",
            "stray": "CERTIFICATE_VERIFY_FAILED",
        }
        for name, sign in signs.items():
            wait_until(
                lambda name=name, sign=sign: sign in log(name),
                timeout=60,
                what=f"{name}: {sign}",
                alive=lambda: group.check("superlink"),
            )
        assert "SuperNode ID:" not in log("unknown") + log("stray")
        assert judge_log(log("registered"))[0] is True
        assert [classify_reason(judge_log(log(name))[1]) for name in ("unknown", "stray")] == ["key", "certificate"]
        assert log("superlink").count("Activated node_id=") == 1
        plain = [script("flower-supernode"), "--superlink", address, "--port", str(free_port()), "--insecure"]
        group.start("plain", [*plain, "--max-retries", "1"], cwd=tmp_path)
        wait_until(lambda: "Exit Code:" in log("plain"), timeout=60, what="plain", alive=lambda: None)
        assert "SuperNode ID:" not in log("plain")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_round_with_tls_node_keys_and_signatures(tmp_path: Path, template: Path) -> None:
    """Real processes from end to end; then the keys of one site are those of another."""
    state = tmp_path / "coordinator"
    own = PrivateKey.new(COORDINATOR)
    _, public = own.save(state)
    certs = tmp_path / "certs"
    make_certs(CertOptions(hosts=("127.0.0.1",), nodes=("site-0", "site-1")), certs)
    with Registry(state) as registry:
        for name in ("site-0", "site-1"):
            _, pub = PrivateKey.new(name).save(tmp_path / "keys")
            registry.register(PublicKey.load(pub), name)
    swapped = {"site-0": "site-0", "site-1": "site-0"}  # site-1 has taken the key of site-0

    def identify(files: dict[str, Path]) -> None:
        for name, path in files.items():
            key = tmp_path / "keys" / f"{swapped[name]}.key"
            lines = f"\n[identity]\nkey = {json.dumps(str(key))}\ncoordinator = {json.dumps(str(public))}\n"
            path.write_text(path.read_text() + lines)

    events = run_federation(
        tmp_path, template, sites=2, certs=certs, prepare=identify, **{"require-signatures": True, "quorum": 1}
    )
    assert {(e["site"], e["code"]) for e in events if e["event"] == "refused"} == {("site-1", "swapped-site")}
    assert {e["site"] for e in events if e["event"] == "reply"} == {"site-0"}
    assert refusals(state) == [("site-1", "swapped-site")] * 2
    found = verify(state, own.public)
    assert (found.ok, found.signed) == (True, True)
    names = [json.loads(line)["event"] for line in (state / "audit.jsonl").read_text().splitlines()]
    assert names[0] == "run-begun"
    assert names[-1] == "exported"
    assert names.count("reply-refused") == 2
    assert names.count("published") == 1


def refusals(state: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(state / "ledger.db") as db:
        return db.execute("SELECT site, code FROM refusal").fetchall()
