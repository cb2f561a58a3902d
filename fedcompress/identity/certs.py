"""Makes the certificates of a small deployment: a CA, a server certificate, and keys of Flower's SuperNodes.

All keys are on the curve NIST P-256. A deployment that has a CA of its own needs none of this.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from fedcompress.errors import ConfigError
from fedcompress.identity.keys import check_private, write_file
from fedcompress.types import NAME_PATTERN

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

MAX_DAYS = 3650  # the longest life of a server certificate, and the life of the CA's
CLOCKS = timedelta(minutes=10)  # certificates begin so long before now, since clocks differ


@dataclass(frozen=True, kw_only=True)
class CertOptions:
    """The options say what ``certs new`` makes.

    Args:
        hosts: DNS names and addresses of the SuperLink, as SuperNodes write them; if empty, there is no certificate.
        nodes: names of the SuperNodes that get a key.
        days: how long the server certificate is valid from now on.
    """

    hosts: tuple[str, ...]
    nodes: tuple[str, ...] = ()
    days: int = 365

    def __post_init__(self) -> None:
        if not self.hosts and not self.nodes:
            raise ConfigError("--host", "nothing", "must be given, or --node")
        for host in self.hosts:
            _parse_host(host)
        for node in self.nodes:
            if not NAME_PATTERN.fullmatch(node) or node in ("ca", "server"):
                raise ConfigError(
                    "--node", repr(node[:80]), f"must match {NAME_PATTERN.pattern}, and not be ca or server"
                )
        if not 1 <= self.days <= MAX_DAYS:
            raise ConfigError("--days", self.days, f"must be from 1 to {MAX_DAYS}")


def make_certs(options: CertOptions, folder: Path, *, force: bool = False) -> dict[str, str]:
    """Write certificates and keys into a folder.

    Args:
        options: what to make.
        folder: where to write. A CA that is in it already is used again, never replaced.
        force: replace all other files that are there already.

    Returns:
        The paths by the names ``ca.crt``, ``ca.key``, ``server.crt``, ``server.key``, ``NODE.key`` and ``NODE.pub``.

    Raises:
        ConfigError: a file is there already, or cannot be written; or what should be the CA is none.
    """
    paths: dict[str, str] = {}
    if options.hosts:
        paths |= _make_server(options, folder, force)
    for node in options.nodes:
        private_path = folder / f"{node}.node.key"
        public_path = folder / f"{node}.node.pub"
        key = _generate_key()
        write_file(private_path, _encode_private_openssh(key), mode=0o600, force=force)
        write_file(public_path, _encode_public_openssh(key), mode=0o644, force=force)
        paths |= {f"{node}.key": str(private_path), f"{node}.pub": str(public_path)}
    return paths


def _make_server(options: CertOptions, folder: Path, force: bool) -> dict[str, str]:
    files = {name: folder / name for name in ("ca.crt", "ca.key", "server.crt", "server.key")}
    if not force and (files["server.crt"].exists() or files["server.key"].exists()):
        raise ConfigError("--out", files["server.crt"], "exists already: --force overwrites it")
    if files["ca.key"].exists():
        authority, issuer = _load_ca(files["ca.crt"], files["ca.key"])
    else:
        authority = _generate_key()
        issuer = _build_ca(authority)
        write_file(files["ca.key"], _encode_private_pem(authority), mode=0o600)
        write_file(files["ca.crt"], _encode_certificate(issuer), mode=0o644)
    key = _generate_key()
    write_file(files["server.key"], _encode_private_pem(key), mode=0o600, force=force)
    certificate = _build_server_certificate(options, key, authority, issuer)
    write_file(files["server.crt"], _encode_certificate(certificate), mode=0o644, force=force)
    return {name: str(path) for name, path in files.items()}


def _build_ca(key: EllipticCurvePrivateKey) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    name = _build_name("fedcompress CA")
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = _begin_certificate(name, name, key, MAX_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    return builder.sign(key, hashes.SHA256())


def _build_server_certificate(
    options: CertOptions, key: EllipticCurvePrivateKey, authority: EllipticCurvePrivateKey, issuer: x509.Certificate
) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID

    builder = _begin_certificate(_build_name(options.hosts[0]), issuer.subject, key, options.days)
    names = [_parse_host(host) for host in options.hosts]
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.SubjectAlternativeName(names), False),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), False),
    ]
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(authority, hashes.SHA256())


def _begin_certificate(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - CLOCKS).not_valid_after(now + timedelta(days=days))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _build_name(text: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _parse_host(host: str) -> x509.GeneralName:
    """Parse a host into what a certificate names: an address, or a DNS name.

    Raises:
        ConfigError: the text is neither.
    """
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    are_valid = all(0 < len(x) < 64 and x.replace("-", "").isalnum() and x.isascii() for x in labels)
    if not are_valid or len(host) > 253:
        raise ConfigError("--host", repr(host[:80]), "must be a DNS name or an address, without a port")
    return x509.DNSName(host)


def _load_ca(certificate: Path, key: Path) -> tuple[EllipticCurvePrivateKey, x509.Certificate]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    check_private(key, "ca.key")
    try:
        private = load_pem_private_key(key.read_bytes(), password=None)
        authority = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError("--out", certificate.parent, f"its ca.key and ca.crt cannot be read: {error}") from error
    if not isinstance(private, EllipticCurvePrivateKey) or authority.public_key() != private.public_key():
        raise ConfigError("--out", certificate.parent, "its ca.key is not that of its ca.crt")
    return private, authority


def _generate_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _encode_private_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _encode_private_openssh(key: EllipticCurvePrivateKey) -> bytes:
    """Encode a private key as Flower's SuperNode reads it."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def _encode_public_openssh(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"


def _encode_certificate(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def hosts_of(texts: Sequence[str]) -> tuple[str, ...]:
    """Return hosts or names without repetitions and without white space around them, in order."""
    return tuple(dict.fromkeys(text.strip() for text in texts))
