"""These checks look at who speaks: the keys of site.toml, and the SuperLink's certificate."""

from __future__ import annotations

import socket
import ssl

from clients.commands.checks.base import Check, Subject, fail, ok, warn
from clients.commands.checks.network import TIMEOUT
from clients.commands.up import KEY_REMEDY, host_and_port
from clients.signing import SiteIdentity
from fedcompress.errors import ConfigError

OUT_OF_TIME = (9, 10)  # OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED


def check_identity(subject: Subject) -> list[Check]:
    """Check that both keys are there and can be read, the private one by nobody else."""
    name = "identity"
    try:
        identity = SiteIdentity.load(subject.site)
    except ConfigError as error:
        return [fail(name, str(error), "make the key anew with `fedcompress keys new`, or ask the coordinator for its")]
    checks = []
    if identity.key is not None:
        checks.append(ok(name, f"signs with key {identity.key.public.id}"))
    else:
        checks.append(warn(name, "signs nothing: identity.key is not set", "see `fedcompress keys new --help`"))
    if identity.coordinator is not None:
        checks.append(ok(name, f"takes tasks of the coordinator's key {identity.coordinator.id} only"))
    else:
        remedy = "ask the coordinator for coordinator.pub, and set identity.coordinator"
        checks.append(warn(name, "takes tasks of anybody: identity.coordinator is not set", remedy))
    return checks


def check_tls(subject: Subject) -> list[Check]:
    """Check that the root certificates vouch for the SuperLink's certificate, and that the SuperNode has a key."""
    name = "tls"
    if not subject.superlink:
        return []
    if subject.insecure:
        return [warn(name, "--insecure: the connection is not encrypted", "leave it out, and give root certificates")]
    checks = [_certificate(subject)]
    if subject.key is None:
        checks.append(warn(name, "the SuperNode has no key: a SuperLink takes none without by default", KEY_REMEDY))
    return checks


def _certificate(subject: Subject) -> Check:
    """Connect to the SuperLink by TLS, and check its certificate."""
    name = "tls"
    host, port = host_and_port(subject.superlink)
    file = subject.root_certificates
    try:
        context = ssl.create_default_context(cafile=str(file) if file else None)
        with (
            socket.create_connection((host, port), timeout=TIMEOUT) as plain,
            context.wrap_socket(plain, server_hostname=host) as wrapped,
        ):
            return ok(name, f"{subject.superlink}: {wrapped.version()}, its certificate is right")
    except ssl.SSLCertVerificationError as error:
        is_time = error.verify_code in OUT_OF_TIME
        remedy = "set this machine's clock; if it is right, ask the coordinator for a new certificate"
        text = f"{subject.superlink}: {error.verify_message}"
        return fail(name, text, remedy if is_time else "ask the coordinator for its ca.crt")
    except (ssl.SSLError, OSError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        return fail(name, f"{subject.superlink}: no TLS: {text}", "ask whether it has TLS; --insecure is without")
