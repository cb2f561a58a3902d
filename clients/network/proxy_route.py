"""How a SuperNode is led through the relay that counts: its address without TLS, the variables of a proxy with it."""

from __future__ import annotations

import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Route:
    """Where the relay connects to.

    Attributes:
        target: host and port.
        tunnel: whether the SuperNode asks the relay by ``CONNECT``; not without TLS, nor where the target is a proxy of
            the site's own, which is asked through the relay.
        proxy: URL of that proxy; empty without one.
    """

    target: tuple[str, int]
    tunnel: bool = False
    proxy: str = ""
    kept: tuple[str, ...] = field(default=())  # of no_proxy


def find_route(host: str, port: int, *, insecure: bool, proxies: Mapping[str, str]) -> Route | None:
    """The route to a SuperLink; None where it cannot be counted: through a proxy without TLS, or one that is not HTTP.

    Args:
        host: of the SuperLink.
        port: of the SuperLink.
        insecure: whether it is spoken to without TLS.
        proxies: as ``urllib.request.getproxies`` gives them: of ``http``, ``https``, ``all``; ``no`` are exceptions.
    """
    exceptions = [entry.strip() for entry in proxies.get("no", "").split(",") if entry.strip()]
    kept = tuple(entry for entry in exceptions if not _matches(entry, host))
    found = proxies.get("http" if insecure else "https") or proxies.get("all") or ""
    proxy = found if len(kept) == len(exceptions) else ""
    if not proxy:
        return Route(target=(host, port), tunnel=not insecure, kept=kept)
    url = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if insecure or url.scheme != "http" or not url.hostname:
        return None
    return Route(target=(url.hostname, url.port or 80), proxy=url.geturl(), kept=kept)


def proxy_variables(route: Route, relay: str) -> dict[str, str]:
    """Variables that lead TLS through the relay at HOST:PORT; the rest of what a SuperNode speaks to is on loopback."""
    if not route.tunnel and not route.proxy:
        return {}
    user, at, _ = urllib.parse.urlsplit(route.proxy).netloc.rpartition("@")
    no = ",".join(route.kept)
    return {"https_proxy": f"http://{user}{at}{relay}", "no_proxy": no, "http_proxy": "", "all_proxy": ""}


def _matches(entry: str, host: str) -> bool:
    """Whether an exception holds for a host, read as widely as any program reads it."""
    return entry == "*" or host.lower().endswith(entry.lower().lstrip("*."))


def system_proxies() -> dict[str, str]:
    """The proxies of this process's environment."""
    return urllib.request.getproxies()
