"""The result of a check, and what checks are told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clients.site import SiteConfig
from fedcompress.adapters.template import Template

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line: what was looked at, how it is, and what to do about it."""

    name: str
    status: str
    text: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is checked.

    Args:
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
    """Nothing to do."""
    return Check(name=name, status=OK, text=text)


def warn(name: str, text: str, remedy: str = "") -> Check:
    """It works, but may not be what is wanted; or could not be checked."""
    return Check(name=name, status=WARN, text=text, remedy=remedy)


def fail(name: str, text: str, remedy: str) -> Check:
    """The site will not work so."""
    return Check(name=name, status=FAIL, text=text, remedy=remedy)
