"""``fedcompress keys``, ``audit`` and ``certs``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.test_cli import call


def test_from_a_new_key_to_a_revoked_one(tmp_path: Path) -> None:
    state = tmp_path / "state"
    made = json.loads(call("keys", "new", "north", "-o", tmp_path, "--json").stdout)
    assert json.loads(call("keys", "new", "coordinator", "-o", state, "--json").stdout)["name"] == "coordinator"
    done = call("keys", "register", made["public"], "--site", "north", "--state-dir", state, "--json")
    assert [(row["site"], row["id"], row["revoked"]) for row in json.loads(done.stdout)] == [
        ("north", made["id"], None)
    ]
    again = call("keys", "register", made["public"], "--site", "north", "--state-dir", state)
    assert "already" in again.stdout
    wrong = call("keys", "register", made["public"], "--site", "south", "--state-dir", state)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert wrong.stderr.startswith("error: PUBKEY_FILE: ")
    listed = json.loads(call("keys", "list", "--state-dir", state, "--json").stdout)
    assert [row["site"] for row in listed["keys"]] == ["north"]
    assert listed["coordinator"]["public"].startswith("fedcompress-ed25519 ")
    assert call("keys", "revoke", made["id"], "--state-dir", state).returncode == 0
    assert "revoked" in call("keys", "list", "--state-dir", state).stdout
    assert json.loads(call("keys", "revoke", "north", "--state-dir", state, "--json").stdout) == []
    found = json.loads(call("audit", "verify", state, "--json").stdout)
    assert (found["ok"], found["lines"], found["signed"]) == (True, 2, True)
    call("keys", "new", "coordinator", "-o", state, "--force")
    assert call("audit", "verify", state).returncode == 0
    rows = [json.loads(line) for line in (state / "audit.jsonl").read_text().splitlines()]
    assert [row["event"] for row in rows] == ["key-registered", "key-revoked", "coordinator-key-changed"]
    path = state / "audit.jsonl"
    path.write_text(path.read_text().replace("key-revoked", "key-renamed"))
    bad = call("audit", "verify", state)
    assert bad.returncode == 1
    assert "line 2: " in bad.stdout
    assert json.loads(call("audit", "verify", state, "--json").stdout)["bad_line"] == 2


def test_certs(tmp_path: Path) -> None:
    done = call("certs", "new", "--host", "localhost", "--node", "north", "-o", tmp_path / "c", "--json")
    files = json.loads(done.stdout)
    assert set(files) == {"ca.crt", "ca.key", "server.crt", "server.key", "north.key", "north.pub"}
    assert all(Path(path).is_file() for path in files.values())
    text = call("certs", "new", "--host", "localhost", "--node", "north", "-o", tmp_path / "d").stdout
    assert "--enable-supernode-auth" in text
    assert "flwr supernode register" in text


@pytest.mark.parametrize(
    ("args", "start"),
    [
        (["keys", "new", "../x"], "error: NAME: "),
        (["keys", "register", "/nonexistent", "--site", "x", "--state-dir", "/tmp"], "error: PUBKEY_FILE: "),
        (["keys", "list", "--state-dir", "/nonexistent"], "error: --state-dir: "),
        (["certs", "new"], "error: --host: "),
        (["audit", "verify", "/nonexistent"], "error: /nonexistent/audit.jsonl: there is no audit log"),
    ],
)
def test_bad_input_is_one_line(args: list[str], start: str) -> None:
    done = call(*args)
    assert done.returncode in (1, 2)
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(start)


@pytest.mark.parametrize("group", ["keys", "audit", "certs"])
def test_help_has_examples(group: str) -> None:
    commands = {"keys": ["new", "register", "revoke", "list"], "audit": ["verify"], "certs": ["new"]}[group]
    for command in commands:
        assert f"fedcompress {group} {command}" in call(group, command, "--help").stdout
