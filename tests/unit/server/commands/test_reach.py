"""Numbers that can never be met are refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedcompress.errors import ConfigError
from fedcompress.identity.keys import PrivateKey
from fedcompress.identity.registry import Registry
from server.commands.reach import check_reach
from server.settings import Settings, load_settings

NAMES = ("north", "south", "west")


def settings(folder: Path, *, nodes: tuple[str, ...] = (), more: str = "", **run: Any) -> Settings:
    (folder / "nodes").mkdir(exist_ok=True)
    for name in nodes:
        (folder / "nodes" / f"{name}.node.pub").write_text("key")
    for name in ("ca", "certificate", "key"):
        (folder / name).write_text("pem")
    tls = "".join(f'{name} = "{name}"\n' for name in ("ca", "certificate", "key"))
    text = f'[coordinator]\nstate_dir = "state"\nnode_keys = "nodes"\n{tls}{more}[run]\ninitial-adapter = "i"\n'
    text += "".join(f"{key.replace('_', '-')} = {str(value).lower()}\n" for key, value in run.items())
    (folder / "c.toml").write_text(text)
    return load_settings(folder / "c.toml")


def register(folder: Path, *names: str) -> None:
    with Registry(folder / "state") as registry:
        for name in names:
            registry.register(PrivateKey.new(name).public, name)


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    """A state directory with the coordinator's key and three sites."""
    register(tmp_path, *NAMES)
    PrivateKey.new("coordinator").save(tmp_path / "state")
    return tmp_path


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"quorum": 7, "min_sites": 3}, "run.quorum: 7: must be at most 3, the min-sites"),
        ({"quorum": 4, "min_sites": 3}, "run.quorum: 4: must be at most 3"),
        (
            {"min_sites": 5},
            r"min-sites: 5: must be at most 3, the sites with a registered key \(north, south, west\)",
        ),
    ],
)
def test_more_than_can_come(signed: Path, run: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_reach(settings(signed, **run))


def test_a_buffer_of_more_than_there_are(signed: Path) -> None:
    with pytest.raises(ConfigError, match=r"run.buffer: 4: must be at most 3"):
        check_reach(settings(signed, buffer=4, late='"merge"'))


def test_keys_of_supernodes_count(signed: Path) -> None:
    with pytest.raises(ConfigError, match="must be at most 2, the SuperNodes with a key in node_keys: north, south"):
        check_reach(settings(signed, nodes=("north", "south")))


def test_no_keys_at_all(tmp_path: Path) -> None:
    """The coordinator's own is asked for first, and here, and not a minute after the start."""
    with pytest.raises(ConfigError, match="needs the coordinator's own key: fedcompress keys new coordinator"):
        check_reach(settings(tmp_path))
    PrivateKey.new("coordinator").save(tmp_path / "state")
    with pytest.raises(ConfigError, match=r"must be at most 0, the sites with a registered key \(none\)"):
        check_reach(settings(tmp_path))
    assert check_reach(settings(tmp_path, require_signatures=False)) == []


def test_a_revoked_key_does_not_count(signed: Path) -> None:
    with Registry(signed / "state") as registry:
        registry.revoke("west")
    with pytest.raises(ConfigError, match=r"must be at most 2, .* \(north, south\)"):
        check_reach(settings(signed))


def test_a_node_without_a_site_key_is_named(signed: Path) -> None:
    (note,) = check_reach(settings(signed, nodes=(*NAMES, "east")))
    assert note.startswith("warning: east: a SuperNode's key lies in node_keys")


def test_what_can_be_met(signed: Path) -> None:
    assert check_reach(settings(signed, nodes=NAMES)) == []
    assert check_reach(settings(signed, nodes=NAMES, min_sites=3, quorum=3, sites_per_round=3)) == []
