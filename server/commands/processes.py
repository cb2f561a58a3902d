"""The commands that ``fedcompress run`` starts, and what they are told."""

from __future__ import annotations

import json
import os
import shlex
import sqlite3
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcompress.demo.federation import app_folder
from fedcompress.demo.processes import script
from server.commands.settings import CoordinatorConfig, Settings, host_and_port
from server.places import FLOWER, SUPERLINK_DB

LINK, SUBMISSION = "superlink", "submission"
CONNECTION = "fedcompress"  # its name in Flower's config.toml
Command = list[str | Path]


def superlink_command(config: CoordinatorConfig) -> Command:
    """Our own SuperLink, which ends when this process does."""
    host, port = host_and_port("coordinator.listen", config.listen)
    command: Command = [sys.executable, "-m", "server.commands.guard", str(os.getpid()), script("flower-superlink")]
    command += ["--host", host, "--port", str(port), "--database", config.state_path / SUPERLINK_DB]
    if config.insecure:
        return [*command, "--insecure"]
    command += ["--ssl-ca-certfile", config.ca, "--ssl-certfile", config.certificate, "--ssl-keyfile", config.key]
    return [*command, "--enable-supernode-auth"] if config.supernode_keys else command


def submit_command(settings: Settings) -> Command:
    """``flwr run``, which stays and follows the run."""
    overrides = settings.coordinator.state_path / FLOWER / "run-config.toml"
    return [script("flwr"), "run", app_folder(), CONNECTION, "--stream", "--run-config", overrides]


def has_nodes(database: Path) -> bool:
    """Whether a SuperLink knows the key of any SuperNode; true where its database cannot be read."""
    if not database.is_file():
        return False
    try:
        db = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
        try:
            known = "SELECT 1 FROM node WHERE public_key IS NOT NULL AND unregistered_at IS NULL LIMIT 1"
            return db.execute(known).fetchone() is not None
        finally:
            db.close()
    except sqlite3.Error:
        return True


def registration(config: CoordinatorConfig) -> str:
    """The command that registers the key of a site's SuperNode."""
    home = shlex.quote(str(config.state_path / FLOWER))
    return f"FLWR_HOME={home} flwr supernode register NAME.node.pub {CONNECTION}"


def write_flower_home(settings: Settings, flat: Mapping[str, Any]) -> Path:
    """The folder for ``FLWR_HOME``: the connection to the SuperLink, and the overrides of the run config."""
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
