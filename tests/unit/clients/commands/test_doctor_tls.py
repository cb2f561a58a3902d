"""``site doctor`` against a TLS listener, and ``site init`` with keys."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.commands.checks.base import Subject
from clients.commands.checks.identity import check_tls
from clients.commands.init import Options, run
from clients.site import SiteConfig
from fedcompress.identity import PrivateKey
from fedcompress.identity.certs import CertOptions, make_certs


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder with certificates, and the address of a server that uses them."""
    certs = tmp_path / "certs"
    make_certs(CertOptions(hosts=("127.0.0.1",)), certs)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs / "server.crt", certs / "server.key")
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                client.settimeout(10)
                context.wrap_socket(client, server_side=True).close()
            except OSError:
                client.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield certs, f"127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(timeout=20)
    assert not thread.is_alive()


def make_site(folder: Path, **answers: str) -> SiteConfig:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "rows.jsonl").write_text("{}\n")
    basics = {"site.name": "north", "model.path": "model", "data.train": "rows.jsonl"}
    assert run(Options(out=str(folder / "site.toml"), answers={**basics, **answers}, yes=True)) == 0
    return SiteConfig.load(folder / "site.toml")


def test_tls(tmp_path: Path, served: tuple[Path, str]) -> None:
    certs, address = served
    other = tmp_path / "other"
    make_certs(CertOptions(hosts=("127.0.0.1",)), other)
    site = make_site(tmp_path)

    def status(address: str, root: Path | None, *, insecure: bool = False) -> list[str]:
        keys = {"key": None if insecure else certs / "node.key"}
        subject = Subject(
            file=tmp_path, site=site, superlink=address, root_certificates=root, insecure=insecure, **keys
        )
        return [check.status for check in check_tls(subject)]

    assert status(address, certs / "ca.crt") == ["ok"]
    assert status(address, other / "ca.crt") == ["fail"]
    assert status(address, None) == ["fail"]
    assert status(address, certs / "server.key") == ["fail"]  # no certificate is in it
    assert status(address, None, insecure=True) == ["warn"]
    assert status("", certs / "ca.crt") == []
    without = check_tls(Subject(file=tmp_path, site=site, superlink=address, root_certificates=certs / "ca.crt"))
    assert [check.status for check in without] == ["ok", "warn"]
    assert "superlink.node_key" in without[1].remedy


def test_init_with_keys(tmp_path: Path) -> None:
    PrivateKey.new("north").save(tmp_path / "keys")
    make_certs(CertOptions(hosts=("localhost",), nodes=("north",)), tmp_path / "keys")
    site = make_site(
        tmp_path,
        **{
            "identity.key": "keys/north.key",
            "identity.coordinator": "keys/north.pub",
            "superlink.address": "localhost:8000",
            "superlink.root_certificates": "keys/ca.crt",
            "superlink.node_key": "keys/north.node.key",
        },
    )
    assert site.identity.key == tmp_path / "keys" / "north.key"
    assert site.superlink.address == "localhost:8000"
    assert site.superlink.node_key == tmp_path / "keys" / "north.node.key"


def test_init_without_keys(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    assert (site.identity.key, site.identity.coordinator, site.superlink.address) == (None, None, "")
