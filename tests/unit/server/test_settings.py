"""CONFIG.toml: what is taken, and one line for what is not, before anything starts."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from fedcompress.config.run_config import RunConfig
from fedcompress.errors import ConfigError
from server.commands.processes import CONNECTION, has_nodes, superlink_command, write_flower_home
from server.settings import load_settings
from tests.support import ROOT

COORDINATOR = '[coordinator]\nstate_dir = "state"\n'
RUN = '[run]\ninitial-adapter = "initial"\n'
OPEN = COORDINATOR + "insecure = true\n"
TLS = 'ca = "ca"\ncertificate = "cert"\nkey = "key"\n'


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "coordinator.toml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file_and_the_rest_is_the_run_config(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, OPEN + RUN + 'rounds = 7\nlr = 1\ncodec = "int8"\n'))
    assert settings.coordinator.state_path == tmp_path / "state"
    assert (settings.run.rounds, settings.run.lr, settings.run.codec) == (7, 1.0, "int8")
    assert (settings.run.initial_adapter, settings.run.state_dir) == (
        str(tmp_path / "initial"),
        str(tmp_path / "state"),
    )
    assert settings.run.seed == RunConfig.seed
    assert "seed" not in settings.flat


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "coordinator.state_dir: '': must be set"),
        (OPEN, "run.initial-adapter: '': must be set"),
        (OPEN + RUN + "[other]\n", "other: .*: unknown section"),
        ("run = 3\n" + OPEN, "run: 3: must be a section"),
        (OPEN + RUN + "round = 3\n", "run.round: 3: unknown key: must be one of"),
        (OPEN + RUN + "min_sites = 3\n", "run.min_sites: 3: unknown key"),
        (OPEN + RUN + "rounds = 0\n", "run.rounds: 0: must be above 0"),
        (OPEN + RUN + 'rounds = "3"\n', "run.rounds: '3': must be of type int"),
        (OPEN + RUN + 'codec = "zip"\n', "run.codec"),
        (OPEN + RUN + 'state-dir = "x"\n', "run.state-dir: x: must not be set"),
        (OPEN + "port = 3\n" + RUN, "coordinator.port: 3: unknown key"),
        (OPEN + 'restarts = "3"\n' + RUN, "coordinator.restarts: '3': must be of type int"),
        (OPEN + "restarts = true\n" + RUN, "coordinator.restarts: True: must be of type int"),
        (OPEN + "restarts = -1\n" + RUN, "coordinator.restarts: -1: must be from 0 to 1000"),
        (OPEN + "first_pause = 0\n" + RUN, "coordinator.first_pause: 0.0: must be above 0"),
        (OPEN + "start_timeout = nan\n" + RUN, "coordinator.start_timeout: nan: must be above 0"),
        (OPEN + 'listen = "8000"\n' + RUN, "coordinator.listen: '8000': must be HOST:PORT"),
        (OPEN + 'listen = "h:99999"\n' + RUN, "coordinator.listen: 'h:99999': must be HOST:PORT"),
        (OPEN + 'listen = "h:٣"\n' + RUN, "coordinator.listen: .*: must be HOST:PORT"),
        (OPEN + 'superlink = "http://h:1"\n' + RUN, "coordinator.superlink: .*: must be HOST:PORT"),
        (OPEN + 'watch = "8080"\n' + RUN, "coordinator.watch: .*: must be HOST:PORT"),
        (OPEN + 'watch = "127.0.0.1:8000"\n' + RUN, "coordinator.watch: .*: must have another port"),
        (
            OPEN + 'listen = "0.0.0.0:80"\nwatch = "127.0.0.1:80"\n' + RUN,
            "coordinator.watch: .*: must have another port",
        ),
        (OPEN + 'ca = "ca.crt"\n' + RUN, "coordinator.insecure: true: cannot go with ca"),
        (COORDINATOR + TLS + 'node_keys = "nowhere"\n' + RUN, "coordinator.node_keys: "),
        (OPEN + 'node_keys = "."\n' + RUN, "must be a folder of NAME.node.pub, and needs supernode_keys"),
        (OPEN + "supernode_keys = true\n" + RUN, "coordinator.supernode_keys: true: needs TLS"),
        (COORDINATOR + RUN, "coordinator.ca: '': must be set, or insecure = true"),
        (COORDINATOR + 'superlink = "h:1"\nsupernode_keys = true\n' + RUN, "coordinator.superlink: h:1: is another's"),
        (COORDINATOR + 'superlink = "h:1"\nkey = "k"\n' + RUN, "coordinator.superlink: h:1: is another's"),
        (
            COORDINATOR + 'superlink = "h:1"\nca = "absent"\n' + RUN,
            "ca: .*absent: must be an existing file",
        ),
        ("[coordinator\n", "CONFIG: .*: must be TOML"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load_settings(written(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_is_absent_or_no_text(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "c.toml"
    if content:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^CONFIG: "):
        load_settings(path)


def test_tls_reaches_the_superlink_and_those_who_connect(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text("")
    settings = load_settings(written(tmp_path, COORDINATOR + TLS + 'listen = "0.0.0.0:9000"\n' + RUN))
    command = [str(word) for word in superlink_command(settings.coordinator)]
    assert "--insecure" not in command
    assert "--enable-supernode-auth" in command
    pairs = dict(pairwise(command))
    assert (pairs["--host"], pairs["--port"]) == ("0.0.0.0", "9000")
    assert pairs["--ssl-keyfile"] == str(tmp_path / "key")
    home = write_flower_home(settings, settings.flat)
    connection = (home / "config.toml").read_text()
    assert f"[superlink.{CONNECTION}]" in connection
    assert 'address = "127.0.0.1:9000"' in connection
    assert f"root-certificates = {json.dumps(str(tmp_path / 'ca'))}" in connection
    assert "insecure" not in connection


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (TLS, True),
        (TLS + "supernode_keys = true\n", True),
        (TLS + "supernode_keys = false\n", False),
        ("insecure = true\n", False),
        ('superlink = "127.0.0.1:1"\n', False),
        ('superlink = "127.0.0.1:1"\nca = "ca"\n', False),
    ],
)
def test_keys_of_supernodes_are_asked_for_where_that_can_be(tmp_path: Path, said: str, wanted: bool) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text("")
    settings = load_settings(written(tmp_path, COORDINATOR + said + RUN))
    assert settings.coordinator.supernode_keys is wanted
    assert ("--enable-supernode-auth" in superlink_command(settings.coordinator)) is wanted


def test_whether_a_superlink_knows_any_node(tmp_path: Path) -> None:
    database = tmp_path / "superlink.db"
    assert not has_nodes(database)
    with closing(sqlite3.connect(database)) as db:
        db.execute("CREATE TABLE node (public_key BLOB, unregistered_at TEXT)")
        for row, found in (((None, None), False), ((b"a", "2026-01-01"), False), ((b"b", None), True)):
            db.execute("INSERT INTO node VALUES (?, ?)", row)
            db.commit()
            assert has_nodes(database) is found
    database.write_text("something else")
    assert has_nodes(database), "nothing is said of what is not known"


@pytest.mark.parametrize(
    ("listen", "address"),
    [("127.0.0.1:1", "127.0.0.1:1"), ("0.0.0.0:2", "127.0.0.1:2"), ("[::]:3", "[::1]:3"), ("host:4", "host:4")],
)
def test_the_address_that_this_machine_connects_to(tmp_path: Path, listen: str, address: str) -> None:
    settings = load_settings(written(tmp_path, OPEN + f'listen = "{listen}"\n' + RUN))
    assert settings.coordinator.address == address
    assert "--insecure" in superlink_command(settings.coordinator)


def test_the_example_is_taken(tmp_path: Path) -> None:
    text = (ROOT / "deploy" / "coordinator.example.toml").read_text()
    (tmp_path / "certs").mkdir()
    for name in ("ca.crt", "server.crt", "server.key"):
        (tmp_path / "certs" / name).write_text("")
    settings = load_settings(written(tmp_path, text))
    assert settings.coordinator.supernode_keys
    assert settings.run.quorum <= settings.run.min_sites
