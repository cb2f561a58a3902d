"""The check of the SuperLink's certificate, against a TLS listener; keys are checked in ../../test_signing."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.commands.checks.base import Subject
from clients.commands.checks.identity import check_tls
from clients.site import SiteConfig
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


def test_tls(tmp_path: Path, site_file: Path, served: tuple[Path, str]) -> None:
    certs, address = served
    other = tmp_path / "other"
    make_certs(CertOptions(hosts=("127.0.0.1",)), other)
    site = SiteConfig.load(site_file)

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
