"""Certificates that TLS takes, and that it does not."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedcompress.errors import ConfigError
from fedcompress.identity.certs import CertOptions, make_certs


def handshake(served: Path, trusted: Path, host: str) -> str:
    """TLS over a socket pair: the version agreed on, or why there is none."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(served / "server.crt", served / "server.key")
    client = ssl.create_default_context(cafile=str(trusted / "ca.crt"))
    left, right = socket.socketpair()
    for end in (left, right):
        end.settimeout(20)

    def serve() -> None:
        try:
            server.wrap_socket(left, server_side=True).close()
        except OSError:
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(right, server_hostname=host) as wrapped:
            return str(wrapped.version())
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    finally:
        right.close()
        thread.join()


def test_tls(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    make_certs(CertOptions(hosts=("127.0.0.1", "coordinator.example")), one)
    make_certs(CertOptions(hosts=("127.0.0.1",)), two)
    assert handshake(one, one, "127.0.0.1") == "TLSv1.3"
    assert handshake(one, one, "coordinator.example") == "TLSv1.3"
    assert "mismatch" in handshake(one, one, "other.example")
    assert "mismatch" in handshake(one, one, "127.0.0.2")
    assert handshake(one, two, "127.0.0.1") != "TLSv1.3"


def test_an_expired_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcompress.identity.certs.CLOCKS", timedelta(days=3))
    real = datetime.now(UTC)

    class Yesterday(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return real - timedelta(days=2)

    monkeypatch.setattr("fedcompress.identity.certs.datetime", Yesterday)
    make_certs(CertOptions(hosts=("localhost",), days=1), tmp_path)
    assert "expired" in handshake(tmp_path, tmp_path, "localhost")


def test_files_and_fields(tmp_path: Path) -> None:
    made = make_certs(CertOptions(hosts=("localhost",), nodes=("north",), days=30), tmp_path)
    modes = {Path(p).name: stat.S_IMODE(Path(p).stat().st_mode) for p in made.values()}
    assert {n: oct(m) for n, m in modes.items()} == {
        "ca.crt": "0o644",
        "ca.key": "0o600",
        "server.crt": "0o644",
        "server.key": "0o600",
        "north.node.key": "0o600",
        "north.node.pub": "0o644",
    }
    server = x509.load_pem_x509_certificate((tmp_path / "server.crt").read_bytes())
    authority = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    server.verify_directly_issued_by(authority)
    assert isinstance(server.public_key(), ec.EllipticCurvePublicKey)
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    left = server.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=29) < left <= timedelta(days=30)
    private = load_ssh_private_key((tmp_path / "north.node.key").read_bytes(), None)
    public = load_ssh_public_key((tmp_path / "north.node.pub").read_bytes())
    assert private.public_key() == public
    assert isinstance(public, ec.EllipticCurvePublicKey)


def test_nothing_is_overwritten_and_the_ca_stays(tmp_path: Path) -> None:
    make_certs(CertOptions(hosts=("localhost",), nodes=("north",)), tmp_path)
    ca, node = (tmp_path / "ca.crt").read_bytes(), (tmp_path / "north.node.key").read_bytes()
    for again in (CertOptions(hosts=("localhost",)), CertOptions(hosts=(), nodes=("north",))):
        with pytest.raises(ConfigError, match="exists already"):
            make_certs(again, tmp_path)
    assert (tmp_path / "north.node.key").read_bytes() == node
    make_certs(CertOptions(hosts=("localhost", "127.0.0.1")), tmp_path, force=True)
    assert (tmp_path / "ca.crt").read_bytes() == ca
    assert handshake(tmp_path, tmp_path, "127.0.0.1") == "TLSv1.3"
    make_certs(CertOptions(hosts=(), nodes=("south",)), tmp_path)


def test_a_ca_that_is_not_one(tmp_path: Path) -> None:
    make_certs(CertOptions(hosts=("localhost",)), tmp_path / "one")
    make_certs(CertOptions(hosts=("localhost",)), tmp_path / "two")
    (tmp_path / "one" / "ca.crt").write_bytes((tmp_path / "two" / "ca.crt").read_bytes())
    with pytest.raises(ConfigError, match=r"its ca.key is not that of its ca.crt"):
        make_certs(CertOptions(hosts=("localhost",)), tmp_path / "one", force=True)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hosts": ()}, "--host: nothing"),
        ({"hosts": ("a b",)}, "must be a DNS name"),
        ({"hosts": ("host:8000",)}, "without a port"),
        ({"hosts": ("h\n",)}, "must be a DNS name"),
        ({"hosts": ("x" * 64,)}, "must be a DNS name"),
        ({"hosts": ("localhost",), "days": 0}, "--days"),
        ({"hosts": ("localhost",), "days": 4000}, "--days"),
        ({"hosts": (), "nodes": ("../x",)}, "--node"),
        ({"hosts": (), "nodes": ("ca",)}, "--node"),
    ],
)
def test_bad_options(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CertOptions(**fields)
