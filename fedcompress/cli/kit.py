"""``fedcompress site kit`` and ``site join`` bring a new site into a federation with one encrypted file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedcompress.runtime.app_commands import encode_command, execute

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Passphrase = Annotated[Path | None, typer.Option(help="File whose first line is the passphrase.")]


def kit(
    name: Annotated[str, typer.Argument(help="Of the site, unique in the federation.")],
    coordinator: Annotated[str, typer.Option(help="HOST:PORT of the SuperLink, as the site reaches it.")],
    coordinator_key: Annotated[Path, typer.Option(help="The coordinator's public key, STATE_DIR/coordinator.pub.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write; NAME.kit if not given.")] = None,
    root_certificates: Annotated[Path | None, typer.Option(help="The CA's certificate, certs/ca.crt.")] = None,
    template: Annotated[Path | None, typer.Option(help="The run's template, for `site doctor`.")] = None,
    model: Annotated[str, typer.Option(help="Base model as a hub id, if sites take it from there.")] = "",
    passphrase_file: Passphrase = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    as_json: Json = False,
) -> None:
    """Write one encrypted file, at the coordinator, with all that a new site needs. No private key is in it.

    Without a file with a passphrase one is made and printed: tell it to the site by another way than the kit goes.

    Examples:
      fedcompress site kit north --coordinator fed.example:8000 --coordinator-key state/coordinator.pub
      fedcompress site kit north --coordinator fed.example:8000 --coordinator-key coordinator.pub -o north.kit --json
    """
    import secrets

    from fedcompress.identity.keys import write_file
    from fedcompress.identity.kit import collect_kit, encrypt_kit, read_passphrase

    folder_or_files = {"ca.crt": root_certificates, "coordinator.pub": coordinator_key, "template": template}
    files = collect_kit(name, coordinator, folder_or_files, model=model)
    passphrase = read_passphrase(passphrase_file) if passphrase_file is not None else secrets.token_urlsafe(18)
    target = out or Path(f"{name}.kit")
    write_file(target, encrypt_kit(files, passphrase), mode=0o600, force=force)
    shown = passphrase if passphrase_file is None else ""
    if as_json:
        print(json.dumps({"kit": str(target), "passphrase": shown, "files": sorted(files)}))
        return
    print(f"{target}: {len(files)} files, for {name}")
    if shown:
        print(f"passphrase: {shown}  (tell it to {name} by another way than the kit goes)")
    print(f"at the site: fedcompress site join {target.name} -d {name} --train ROWS --model MODEL")
    print(f"then, with what it sends back: fedcompress keys register {name}.pub --site {name} --state-dir STATE_DIR")
    print(f"  and put {name}.node.pub into the folder of coordinator.node_keys")


def join(
    file: Annotated[Path, typer.Argument(metavar="KIT", help="The file that the coordinator has sent.")],
    folder: Annotated[
        Path | None, typer.Option("-d", "--dir", help="New folder; the site's name if not given.")
    ] = None,
    passphrase_file: Passphrase = None,
    model: Annotated[str | None, typer.Option(help="Base model: a folder, a GGUF file, or a hub id.")] = None,
    train: Annotated[str | None, typer.Option(help="Training rows.")] = None,
    heldout: Annotated[str | None, typer.Option(help="Held-out rows; cut from the training rows if not given.")] = None,
    text: Annotated[str | None, typer.Option(help="Key of the text in a row.")] = None,
    label: Annotated[str | None, typer.Option(help="Key of the class name.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: defaults for what is not given.")] = False,
    as_json: Json = False,
) -> None:
    """Set a site up from a kit, in a new folder, and make the site's own keys there.

    NAME.pub and NAME.node.pub in the folder go back to the coordinator; nothing else leaves it.

    Examples:
      fedcompress site join north.kit --model ./smollm2 --train train.jsonl
      fedcompress site join north.kit -d north --passphrase-file secret --model ./smollm2 --train rows.csv --yes --json
    """
    named = {"model.path": model, "data.train": train, "data.heldout": heldout, "data.text": text, "data.label": label}
    answers = {key: value for key, value in named.items() if value is not None}
    options = {"kit": str(file), "folder": str(folder) if folder else "", "answers": answers, "yes": yes}
    secret = str(passphrase_file) if passphrase_file else ""
    execute("clients.commands", *encode_command("join", {**options, "passphrase_file": secret, "as_json": as_json}))
