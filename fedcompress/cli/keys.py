"""``fedcompress keys`` decides which key may speak for whom."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedcompress.cli.help import RUN_SECTION, App

if TYPE_CHECKING:
    from fedcompress.identity.registry import Signer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
StateDir = Annotated[Path, typer.Option("--state-dir", help="The coordinator's state directory.")]


def register(app: App) -> None:
    """Add the group of commands to the app."""
    group = App(help="Keys: new, and the coordinator's register, revoke, list.")
    group.add(new)
    group.add(register_key, "register")
    group.add(revoke)
    group.add(list_keys, "list")
    app.add_group(group, "keys", section=RUN_SECTION)


def _as_dict(signer: Signer) -> dict[str, object]:
    """Return a registered key as a row of JSON."""
    key = {"site": signer.site, "id": signer.key.id, "name": signer.key.name, "public": signer.key.line}
    return {**key, "added": signer.added, "revoked": signer.revoked}


def _print(signers: list[Signer], as_json: bool, verb: str) -> None:
    """Print what was done to keys: as JSON, or as a line for each with a verb."""
    if as_json:
        print(json.dumps([_as_dict(s) for s in signers]))
        return
    for signer in signers:
        print(f"{signer.site}: {verb} {signer.key.id}")


def _audit_log(folder: Path, event: str) -> Callable[[Signer], None]:
    """Return a function that appends an event on a key to the coordinator's audit log."""
    from fedcompress.identity.audit import AuditLog
    from fedcompress.identity.registry import coordinator_key

    log = AuditLog(folder, coordinator_key(folder))
    return lambda signer: log.append(event, site=signer.site, key=signer.key.id, public=signer.key.line)


def new(
    name: Annotated[str, typer.Argument(help="Of the site, or coordinator.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for NAME.key and NAME.pub.")] = Path("."),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the files.")] = False,
    as_json: Json = False,
) -> None:
    """Make a key: NAME.key stays where it is made, NAME.pub goes to the other side.

    Examples:
      fedcompress keys new hospital-north -o keys
      fedcompress keys new coordinator -o coordinator-state
    """
    from fedcompress.identity import PrivateKey
    from fedcompress.identity.audit import FILE, AuditLog
    from fedcompress.identity.registry import COORDINATOR

    key = PrivateKey.new(name)
    private_file, public_file = key.save(out, force=force)
    if name == COORDINATOR and (out / FILE).exists():  # the head of the audit log is to have the new signature
        AuditLog(out, key).append("coordinator-key-changed", key=key.public.id, public=key.public.line)
    if as_json:
        paths = {"key": str(private_file), "public": str(public_file)}
        print(json.dumps({"name": name, "id": key.public.id, **paths, "line": key.public.line}))
        return
    print(f"{private_file}: private, key {key.public.id}: keep it here")
    print(f"{public_file}: {key.public.line}")


def register_key(
    file: Annotated[Path, typer.Argument(metavar="PUBKEY_FILE", help="NAME.pub, as the site has sent it.")],
    site: Annotated[str, typer.Option(help="The site that it may speak for.")],
    state_dir: StateDir,
    as_json: Json = False,
) -> None:
    """Let a key speak for a site. A site may have several keys, to change from one to the next.

    Compare the id with the site by another way than the file came: it is what makes the key theirs.

    Example:
      fedcompress keys register north.pub --site hospital-north --state-dir coordinator-state
    """
    from fedcompress.identity import PublicKey, Registry

    key = PublicKey.load(file, field="PUBKEY_FILE")
    with Registry(state_dir) as registry:
        is_new = all(s.key.data != key.data for s in registry.signers())
        signer = registry.register(key, site, log=_audit_log(state_dir, "key-registered"))
    _print([signer], as_json, "registered" if is_new else "was registered already:")


def revoke(
    name: Annotated[str, typer.Argument(help="A site, for all its keys, or the id of one key.")],
    state_dir: StateDir,
    as_json: Json = False,
) -> None:
    """Take no more from a key: it counts from the next reply on, and cannot be undone.

    Examples:
      fedcompress keys revoke hospital-north --state-dir coordinator-state
      fedcompress keys revoke 0f3c5a7e9b1d2f46 --state-dir coordinator-state
    """
    from fedcompress.identity import Registry

    with Registry(state_dir) as registry:
        revoked = registry.revoke(name, log=_audit_log(state_dir, "key-revoked"))
    if not revoked and not as_json:
        print(f"{name}: was revoked already")
    _print(revoked, as_json, "revoked")


def list_keys(state_dir: StateDir, as_json: Json = False) -> None:
    """List all keys, revoked ones too, and the coordinator's own.

    Example:
      fedcompress keys list --state-dir coordinator-state
    """
    from fedcompress.errors import ConfigError
    from fedcompress.identity import Registry
    from fedcompress.identity.registry import coordinator_key

    if not state_dir.is_dir():
        raise ConfigError("--state-dir", state_dir, "must be an existing folder")
    with Registry(state_dir) as registry:
        signers = registry.signers()
    own = coordinator_key(state_dir)
    if as_json:
        coordinator = {"id": own.public.id, "public": own.public.line} if own is not None else None
        print(json.dumps({"coordinator": coordinator, "keys": [_as_dict(s) for s in signers]}))
        return
    print(f"coordinator: {own.public.id if own is not None else 'has no key'}")
    for signer in signers:
        revoked = f", revoked {_format_time(signer.revoked)}" if signer.revoked is not None else ""
        print(f"{signer.site}: {signer.key.id}, registered {_format_time(signer.added)}{revoked}")


def _format_time(at: float) -> str:
    """Return a time in seconds since 1970 as local date and minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
