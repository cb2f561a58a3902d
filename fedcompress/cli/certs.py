"""``fedcompress certs`` makes certificates for TLS, for small deployments and for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedcompress.cli.help import RUN_SECTION, App

# Options of flower-superlink, without ``--ssl-``, and the files that they name.
_SSL = (("ca-certfile", "ca.crt"), ("certfile", "server.crt"), ("keyfile", "server.key"))


def register(app: App) -> None:
    """Add the group of commands to the app."""
    group = App(help="Certificates and SuperNode keys: new.")
    group.add(new)
    app.add_group(group, "certs", section=RUN_SECTION)


def new(
    host: Annotated[
        list[str] | None, typer.Option(help="Name or address of the SuperLink, as sites write it; repeat it.")
    ] = None,
    node: Annotated[list[str] | None, typer.Option(help="Name of a SuperNode that gets a key; repeat it.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")] = Path("certs"),
    days: Annotated[int, typer.Option(help="Days that the server certificate is good for.")] = 365,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there, but for the CA.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Make a CA and the SuperLink's certificate, and keys for SuperNodes. A CA that is there is used again.

    Examples:
      fedcompress certs new --host coordinator.example -o certs
      fedcompress certs new --host 127.0.0.1 --host localhost --node north --node south -o certs
      fedcompress certs new --node west -o west-keys --json
    """
    from fedcompress.identity.certs import CertOptions, hosts_of, make_certs

    options = CertOptions(hosts=hosts_of(host or ()), nodes=hosts_of(node or ()), days=days)
    paths = make_certs(options, out, force=force)
    if as_json:
        print(json.dumps(paths))
        return
    for path in paths.values():
        print(path)
    if options.hosts:
        files = " ".join(f"--ssl-{name} {paths[file]}" for name, file in _SSL)
        print(f"superlink: flower-superlink {files} --enable-supernode-auth")
        print(f"sites: give them {paths['ca.crt']} as root_certificates; keep ca.key to yourself")
    for name in options.nodes:
        print(f"{name}: give {paths[f'{name}.key']} to its site as node_key")
        print("  and set the coordinator's node_keys to this folder, or register it:")
        print(f"  FLWR_HOME=STATE_DIR/flower flwr supernode register {paths[f'{name}.pub']} fedcompress")
