"""``fedcompress site join`` sets a site up from the coordinator's kit, in a new folder."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clients.commands import init
from clients.site import SiteConfig
from fedcompress.errors import ConfigError
from fedcompress.identity import PrivateKey
from fedcompress.identity.certs import CertOptions, make_certs
from fedcompress.identity.keys import write_file
from fedcompress.identity.kit import MAX_SIZE, decrypt_kit, read_passphrase
from fedcompress.types import NAME_PATTERN

SOURCES = ("model.path", "data.train", "data.heldout")  # answers that may be paths of the user's folder


@dataclass(frozen=True, kw_only=True)
class Options:
    """Holds what can be set from the command line.

    Attributes:
        kit: path of the kit.
        folder: new folder of the site; empty: its name.
        answers: of ``site init``, by ``section.key``.
        passphrase_file: file with the passphrase; empty: it is asked for.
        yes: take defaults instead of asking.
        as_json: print JSON.
    """

    kit: str
    folder: str = ""
    answers: dict[str, Any] = field(default_factory=dict)
    passphrase_file: str = ""
    yes: bool = False
    as_json: bool = False


def run(options: Options) -> int:
    """Set up the site in one step: the folder is there whole, or not at all; return 0.

    Raises:
        ConfigError: the kit, an answer or the folder is wrong.
        IdentityError: the kit does not open.
    """
    files = decrypt_kit(_read_kit(Path(options.kit)), _passphrase(options))
    facts = parse_facts(files.pop("kit.json", b""))
    name = facts["name"]
    folder = Path(options.folder or name).absolute()
    if folder.exists():
        raise ConfigError("--dir", folder, "exists already: name a new folder")
    answers = collect_answers(options, facts, files, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for path, data in files.items():
            write_file(part / path, data, mode=0o644)
        key = PrivateKey.new(name)
        key.save(part)
        make_certs(CertOptions(hosts=(), nodes=(name,)), part)
        write_file(part / "site.toml", init.render(answers).encode(), mode=0o644)
        SiteConfig.load(part / "site.toml")
        os.rename(part, folder)  # it fails where somebody has put files there meanwhile
    except OSError as error:
        raise ConfigError("--dir", folder, f"cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _print(options, folder, name, key.public.id, "template" if any(f.startswith("template/") for f in files) else "")
    return 0


def parse_facts(data: bytes) -> dict[str, str]:
    """Parse ``kit.json``: texts by ``name``, ``coordinator`` and ``model``.

    Raises:
        ConfigError: it is something else.
    """
    try:
        facts = json.loads(data)
    except ValueError:
        facts = None
    names = ("name", "coordinator", "model")
    if not isinstance(facts, dict) or any(not isinstance(facts.get(key), str) for key in names):
        raise ConfigError("KIT", "kit.json", "must have name, coordinator and model")
    if not NAME_PATTERN.fullmatch(facts["name"]):
        raise ConfigError("KIT", repr(facts["name"][:80]), f"its name must match {NAME_PATTERN.pattern}")
    return {key: facts[key] for key in names}


def collect_answers(options: Options, facts: dict[str, str], files: dict[str, bytes], folder: Path) -> dict[str, Any]:
    """Collect the answers of ``site init``: the kit's, those that were given, and those that are asked for.

    Args:
        options: has answers, and says whether to ask.
        facts: of the kit.
        files: of the kit, by path.
        folder: of the site, that paths of the kit are relative to.

    Returns:
        Answers by ``section.key``; paths of the user's folder are absolute.

    Raises:
        ConfigError: an answer is missing, and nobody can be asked.
    """
    name = facts["name"]
    known: dict[str, Any] = {"site.name": name, "site.state_dir": "state", "superlink.address": facts["coordinator"]}
    known["identity.key"] = f"{name}.key"
    known["superlink.node_key"] = f"{name}.node.key"
    if "coordinator.pub" in files:
        known["identity.coordinator"] = "coordinator.pub"
    if "ca.crt" in files:
        known["superlink.root_certificates"] = "ca.crt"
    if facts["model"]:
        known["model.path"] = facts["model"]
    asked = init.Options(out=str(folder / "site.toml"), answers={**known, **options.answers}, yes=options.yes)
    answers = init.collect(asked, folder)
    for key in SOURCES:
        path = answers.get(key)
        if path and Path(path).exists():
            answers[key] = str(Path(path).absolute())
    return answers


def _read_kit(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_SIZE + 1)
    except OSError as error:
        raise ConfigError("KIT", path, f"cannot be read: {error.strerror}") from error


def _passphrase(options: Options) -> str:
    """Return the passphrase from its file, or as it is typed in."""
    if options.passphrase_file:
        return read_passphrase(Path(options.passphrase_file))
    if not sys.stdin.isatty():
        raise ConfigError("--passphrase-file", "nothing", "must be given where nobody can be asked")
    import typer

    return str(typer.prompt("Passphrase of the kit", hide_input=True)).strip()


def _print(options: Options, folder: Path, name: str, key_id: str, template: str) -> None:
    """Print what goes back to the coordinator, and what to do next."""
    back = [str(folder / f"{name}.pub"), str(folder / f"{name}.node.pub")]
    if options.as_json:
        print(json.dumps({"site": name, "folder": str(folder), "key": key_id, "send_back": back}))
        return
    more = f" --run-template {folder / template}" if template else ""
    print(f"{folder}: site {name}, key {key_id}")
    print(f"send back to the coordinator: {back[0]} and {back[1]}")
    print(f"  there: fedcompress keys register {name}.pub --site {name} --state-dir STATE_DIR")
    print(f"  and {name}.node.pub goes into the folder of coordinator.node_keys")
    print(f"next: fedcompress site doctor {folder / 'site.toml'}{more}")
