"""The commands that ``fedcompress run`` starts are put together here, with the files that they read."""

from __future__ import annotations

import json
import os
import shlex
import sqlite3
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcompress.errors import ConfigError
from fedcompress.runtime.flower_app import app_folder
from fedcompress.runtime.process_group import script
from server.settings import CoordinatorConfig, Settings, parse_host_and_port
from server.state_dir import FLOWER, SUPERLINK_DB

LINK = "superlink"  # name of the process of the SuperLink
SUBMISSION = "submission"  # name of the process of `flwr run`
NODE_KEY = ".node.pub"  # what names of public keys of SuperNodes end with
CONNECTION = "fedcompress"  # name of the connection to the SuperLink in Flower's config.toml
Command = list[str | Path]


def superlink_command(config: CoordinatorConfig) -> Command:
    """Build the command of our own SuperLink, which ends when this process does."""
    host, port = parse_host_and_port("coordinator.listen", config.listen)
    command: Command = [sys.executable, "-m", "server.commands.guard", str(os.getpid()), script("flower-superlink")]
    command += ["--host", host, "--port", str(port), "--database", config.state_path / SUPERLINK_DB]
    if config.insecure:
        return [*command, "--insecure"]
    command += ["--ssl-ca-certfile", config.ca, "--ssl-certfile", config.certificate, "--ssl-keyfile", config.key]
    return [*command, "--enable-supernode-auth"] if config.supernode_keys else command


def submit_command(settings: Settings) -> Command:
    """Build the command of ``flwr run``, which stays and follows the run."""
    overrides = settings.coordinator.state_path / FLOWER / "run-config.toml"
    return [script("flwr"), "run", app_folder(), CONNECTION, "--stream", "--run-config", overrides]


def read_node_keys(database: Path) -> dict[bytes, bool] | None:
    """Read the keys of SuperNodes that a SuperLink has ever had, PEM, and whether each is registered.

    Returns:
        Whether it is registered, by key; None where the database cannot be read.
    """
    if not database.is_file():
        return {}
    try:
        db = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
        try:
            rows = db.execute("SELECT public_key, unregistered_at IS NULL FROM node WHERE public_key IS NOT NULL")
            return {bytes(key): bool(is_registered) for key, is_registered in rows}
        finally:
            db.close()
    except sqlite3.Error:
        return None


def has_nodes(database: Path) -> bool:
    """Return whether a SuperLink knows the key of any SuperNode; true where its database cannot be read."""
    keys = read_node_keys(database)
    return keys is None or any(keys.values())


def find_new_keys(config: CoordinatorConfig) -> list[Path]:
    """Find the files of ``node_keys`` whose keys the SuperLink has never had: one that was unregistered stays so.

    Raises:
        ConfigError: a file is no public key of a SuperNode.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

    known = read_node_keys(config.state_path / SUPERLINK_DB) or {}
    new = []
    for path in list_node_keys(config):
        try:
            key = load_ssh_public_key(path.read_bytes())
        except (OSError, ValueError) as error:
            rule = f"must be a public key of a SuperNode, as `fedcompress certs new --node` makes it: {error}"
            raise ConfigError("coordinator.node_keys", path, rule) from error
        if key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) not in known:
            new.append(path)
    return new


def list_node_keys(config: CoordinatorConfig) -> list[Path]:
    """Return the files in ``node_keys``, by name; none where it is not set."""
    return sorted(Path(config.node_keys).glob(f"*{NODE_KEY}")) if config.node_keys else []


def name_node(key: Path) -> str:
    """Return the name of the SuperNode whose public key a file has."""
    return key.name.removesuffix(NODE_KEY)


def register_command(key: Path) -> Command:
    """Build the command that lets the SuperLink know the key of a SuperNode."""
    return [script("flwr"), "supernode", "register", key, CONNECTION]


def format_registration(config: CoordinatorConfig) -> str:
    """Format the command that registers the key of a site's SuperNode, for people."""
    home = shlex.quote(str(config.state_path / FLOWER))
    return f"FLWR_HOME={home} flwr supernode register NAME.node.pub {CONNECTION}"


def write_flower_home(settings: Settings, flat: Mapping[str, Any]) -> Path:
    """Write the folder for ``FLWR_HOME``: the connection to the SuperLink, and ``flat`` over the run config.

    Returns:
        The folder.
    """
    config = settings.coordinator
    home = config.state_path / FLOWER
    home.mkdir(parents=True, exist_ok=True)
    lines = ["[superlink]", f"default = {json.dumps(CONNECTION)}", "", f"[superlink.{CONNECTION}]"]
    lines.append(f"address = {json.dumps(config.address)}")
    if config.insecure:
        lines.append("insecure = true")
    elif config.ca:
        lines.append(f"root-certificates = {json.dumps(config.ca)}")
    (home / "config.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    overrides = "".join(f"{key} = {json.dumps(value)}\n" for key, value in flat.items())
    (home / "run-config.toml").write_text(overrides, encoding="utf-8")
    return home
