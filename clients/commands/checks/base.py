"""A check takes a ``Subject`` and returns a ``Check`` for each thing that it has looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clients.site import SiteConfig
from fedcompress.adapters.template import Template

OK = "ok"  # the statuses of a check
WARN = "warn"
FAIL = "fail"


@dataclass(frozen=True, kw_only=True)
class Check:
    """Holds the result of a check, which is one line.

    Attributes:
        name: what was looked at.
        status: ``OK``, ``WARN`` or ``FAIL``.
        text: how it is.
        remedy: what to do about it; empty if nothing.
    """

    name: str
    status: str
    text: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Holds what is checked.

    Attributes:
        file: the site.toml.
        site: what it says.
        template: the run's, if it was given.
        superlink: HOST:PORT, or empty.
        insecure: whether the connection is to be without TLS.
        root_certificates: PEM file, if it was given.
        key: the SuperNode's private key, if it was given.
        max_length: tokens of an example.
    """

    file: Path
    site: SiteConfig
    template: Template | None = None
    superlink: str = ""
    insecure: bool = False
    root_certificates: Path | None = None
    key: Path | None = None
    max_length: int = 64


def ok(name: str, text: str) -> Check:
    """Return the result where there is nothing to do."""
    return Check(name=name, status=OK, text=text)


def warn(name: str, text: str, remedy: str = "") -> Check:
    """Return the result where a thing works, but may not be what is wanted; or could not be checked.

    Args:
        name: what was looked at.
        text: how it is.
        remedy: what to do about it; empty if nothing.

    Returns:
        The result.
    """
    return Check(name=name, status=WARN, text=text, remedy=remedy)


def fail(name: str, text: str, remedy: str) -> Check:
    """Return the result where the site will not work as it is.

    Args:
        name: what was looked at.
        text: how it is.
        remedy: what to do about it.

    Returns:
        The result.
    """
    return Check(name=name, status=FAIL, text=text, remedy=remedy)
