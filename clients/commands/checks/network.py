"""These checks look at the way to the SuperLink: port, certificates, clocks; and at the worker's socket."""

from __future__ import annotations

import http.client
import importlib.util
import socket
import ssl
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from clients.commands.checks.base import Check, Subject, fail, ok, warn
from clients.commands.up import host_and_port
from clients.runtime.paths import lock_path, socket_path
from fedcompress.errors import StateError
from fedcompress.storage.locks import holder

TIMEOUT = 4.0  # seconds that the SuperLink has to answer
SOON = 30  # days before a certificate ends, from which the check warns
SKEW_WARN = 60.0  # seconds between the clocks, above which the check warns
SKEW_FAIL = 300.0  # seconds, above which it fails: Flower refuses signed messages that are as old


def check_superlink(subject: Subject) -> list[Check]:
    """Check that the SuperLink's port accepts a connection."""
    if not subject.superlink:
        return [warn("superlink", "not checked", "give --superlink HOST:PORT")]
    host, port = host_and_port(subject.superlink)
    started = time.monotonic()
    try:
        socket.create_connection((host, port), timeout=TIMEOUT).close()
    except OSError as error:
        text = f"{subject.superlink}: {error.strerror or error or type(error).__name__}"
        return [fail("superlink", text, "ask for the address, and for a firewall that lets this site out to it")]
    milliseconds = 1000 * (time.monotonic() - started)
    return [ok("superlink", f"{subject.superlink}: reached in {milliseconds:.0f} ms")]


def check_certificates(subject: Subject) -> list[Check]:
    """Check when the root certificates end."""
    file = subject.root_certificates
    if file is None:
        return []
    if importlib.util.find_spec("cryptography") is None:
        return [warn("certificates", f"{file}: not checked: the package cryptography is absent")]
    return [_dates(file)]


def _dates(file: Path) -> Check:
    """Compare the dates of all certificates of a file with this machine's clock."""
    from cryptography import x509

    name = "certificates"
    try:
        certificates = x509.load_pem_x509_certificates(file.read_bytes())
    except (OSError, ValueError) as error:
        return fail(name, f"{file}: {error}".splitlines()[0], "name a PEM file with the SuperLink's root certificates")
    now = datetime.now(UTC)
    ends = min(c.not_valid_after_utc for c in certificates)
    begins = max(c.not_valid_before_utc for c in certificates)
    days = (ends - now).days
    if ends <= now:
        return fail(name, f"{file}: ended on {ends.date()}", "get a new one from the coordinator")
    if begins > now:
        minutes = (begins - now).total_seconds() / 60
        text = f"{file}: begins at {begins:%Y-%m-%d %H:%M} UTC, in {minutes:.0f} min by this clock"
        return fail(name, text, "set this machine's clock")
    text = f"{file}: {len(certificates)} certificate(s), end on {ends.date()}"
    return ok(name, text) if days >= SOON else warn(name, f"{text}, in {days} days", "get a new one in time")


def check_clock(subject: Subject) -> list[Check]:
    """Compare the clock here with the Date header of the SuperLink, if it sends one."""
    name = "clock"
    remote = _remote_time(subject) if subject.superlink else None
    if remote is None:
        return [warn(name, "not checked: the SuperLink tells no time", "see that this machine's clock is set by NTP")]
    return [judge_skew(abs((datetime.now(UTC) - remote).total_seconds()))]


def judge_skew(skew: float) -> Check:
    """Return the result for a difference of clocks, in seconds."""
    text = f"differs from the SuperLink's by {skew:.0f} s"
    if skew > SKEW_FAIL:
        return fail("clock", f"{text}: signed messages are refused", "set it by NTP")
    return ok("clock", text) if skew <= SKEW_WARN else warn("clock", text, "set it by NTP")


def _remote_time(subject: Subject) -> datetime | None:
    """Return the SuperLink's time, or None where it cannot be had."""
    host, port = host_and_port(subject.superlink)
    try:
        if subject.insecure:
            connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
        else:
            file = subject.root_certificates
            context = ssl.create_default_context(cafile=str(file) if file else None)
            connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=context)
        try:
            connection.request("HEAD", "/")
            date = connection.getresponse().getheader("Date")
        finally:
            connection.close()
        time_ = parsedate_to_datetime(date) if date else None
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return time_ if time_ is None or time_.tzinfo else time_.replace(tzinfo=UTC)


def check_worker(subject: Subject) -> list[Check]:
    """Check whether a worker runs already, and else whether one could listen."""
    pid = holder(lock_path(subject.site.state_dir))
    if pid:
        return [ok("worker", f"runs, pid {pid}")]
    try:
        socket_path(subject.site.state_dir)
    except StateError as error:
        return [fail("worker", str(error), "remove that folder, or shorten site.state_dir")]
    return [ok("worker", "none runs on this state folder")]
