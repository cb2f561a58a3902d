"""A SuperNode is led through the relay that counts bytes: by its address without TLS, by proxy variables with TLS.

With TLS the SuperNode must keep the SuperLink's own address, which the certificate names; the relay is then its proxy.
"""

from __future__ import annotations

import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedcompress.runtime.flower_app import LOOPBACK


@dataclass(frozen=True, kw_only=True)
class Route:
    """Says where the relay connects to, and how the SuperNode reaches it.

    Attributes:
        target: host and port.
        tunnel: whether the SuperNode asks the relay by ``CONNECT``; not without TLS, nor where the target is a proxy of
            the site's own, which is asked through the relay.
        proxy: URL of that proxy; empty without one.
        exceptions: those of ``no_proxy`` that do not match the SuperLink, and so still hold.
    """

    target: tuple[str, int]
    tunnel: bool = False
    proxy: str = ""
    exceptions: tuple[str, ...] = field(default=())


def find_route(host: str, port: int, *, insecure: bool, proxies: Mapping[str, str]) -> Route | None:
    """Return the route to a SuperLink.

    Args:
        host: of the SuperLink.
        port: of the SuperLink.
        insecure: whether it is spoken to without TLS.
        proxies: as ``urllib.request.getproxies`` gives them: URLs by ``http``, ``https`` and ``all``; under ``no`` the
            exceptions, separated by commas.

    Returns:
        The route; None where bytes cannot be counted: through a proxy without TLS, or one that is not HTTP.
    """
    all_exceptions = [entry.strip() for entry in proxies.get("no", "").split(",") if entry.strip()]
    exceptions = tuple(entry for entry in all_exceptions if not _matches(entry, host))
    configured = proxies.get("http" if insecure else "https") or proxies.get("all") or ""
    # an exception matches, or it is this machine: no proxy for this host
    is_direct = len(exceptions) < len(all_exceptions) or host.lower() in LOOPBACK
    proxy = "" if is_direct else configured
    if not proxy:
        return Route(target=(host, port), tunnel=not insecure, exceptions=exceptions)
    url = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if insecure or url.scheme != "http" or not url.hostname:
        return None
    return Route(target=(url.hostname, url.port or 80), proxy=url.geturl(), exceptions=exceptions)


def proxy_variables(route: Route, relay: str) -> dict[str, str]:
    """Return the variables that lead TLS through the relay at ``HOST:PORT``; none without TLS and without a proxy.

    All else that a SuperNode speaks to is on loopback, so nothing else goes through the relay.
    """
    if not route.tunnel and not route.proxy:
        return {}
    user, at, _ = urllib.parse.urlsplit(route.proxy).netloc.rpartition("@")
    no_proxy = ",".join(route.exceptions)
    found = {"https_proxy": f"http://{user}{at}{relay}", "http_proxy": "", "all_proxy": ""}
    return {**found, "no_proxy": no_proxy, "NO_PROXY": no_proxy}


def _matches(entry: str, host: str) -> bool:
    """Return whether an exception of ``no_proxy`` holds for a host, read as widely as any program reads it."""
    return entry == "*" or host.lower().endswith(entry.lower().lstrip("*."))


def system_proxies() -> dict[str, str]:
    """Return the proxies that this process's environment names."""
    return urllib.request.getproxies()
