"""Finds out from the SuperNode's log whether a site is connected to its SuperLink, since when not, and why.

The signs are those of Flower 1.41. Where its log only says that it tries again, the reason is looked for by a
connection of our own to the same place.
"""

from __future__ import annotations

import json
import re
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from fedcompress.runtime.supervision import COLOUR, MAX_TAIL, read_facts

SUCCESS = ("SuperNode ID:", "Connection successful after", "Receiving: ")
RETRY = "Connection attempt failed"
EXIT = "Exit Code:"
TIMEOUT = 2.0  # seconds that a connection of our own may take
_LEVEL = re.compile(r"^[A-Z]+ *: *")  # as INFO : at the beginning of a line

# what to do, by what is the matter
ADVICE = {
    "refused": "nobody listens there: ask whether the coordinator runs, and for address and port",
    "name": "the name is not known here: look at superlink.address, and at this machine's name server",
    "unreachable": "ask for the address, and for a firewall that lets this site out to it",
    "certificate": "the SuperLink's certificate is not of the CA in root_certificates: get ca.crt from the coordinator",
    "certificate-name": "the certificate lacks the name in superlink.address: use one that it has, or have one made "
    "by `fedcompress certs new --host NAME --force`",
    "certificate-time": "look at this machine's clock, or have a new one made by `fedcompress certs new --force`",
    "tls": "one side speaks TLS and the other does not: see --insecure at both",
    "key": "the SuperLink refuses its key until the coordinator has registered it, and one that is in use",
    "proxy": "this machine's proxy does not let the connection through: see https_proxy and no_proxy",
}


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Says how a site is connected.

    Attributes:
        address: HOST:PORT of the SuperLink.
        connected: whether it is; None while that is not known yet.
        since: when it became so, seconds since 1970.
        kind: what is the matter, a key of ``ADVICE`` or ``other``; empty if nothing.
        reason: a line of the SuperNode's log, or of the system, for people.
    """

    address: str
    connected: bool | None
    since: float
    kind: str = ""
    reason: str = ""

    @property
    def advice(self) -> str:
        """Return what to do; empty if nothing is known."""
        return ADVICE.get(self.kind, "")


def connection_file(state_dir: Path) -> Path:
    """Return the file in which a running ``up`` notes how its SuperNode is connected."""
    return state_dir / "connection.json"


def read_connection(state_dir: Path) -> Connection | None:
    """Read what ``up`` has noted; None if there is nothing, or it is torn."""
    facts = read_facts(connection_file(state_dir))
    try:
        return Connection(**facts) if facts else None
    except TypeError:
        return None


def judge_log(text: str) -> tuple[bool | None, str]:
    """Decide by the last sign in a SuperNode's log whether it is connected.

    Returns:
        True, False or, without any sign, None; and the line that tells why it is not.
    """
    lines = [_LEVEL.sub("", line.strip()) for line in COLOUR.sub("", text).splitlines()]
    lines = [line for line in lines if line]
    connected: bool | None = None
    why = ""
    has_exited = False
    for number, line in enumerate(lines):
        if line.startswith(SUCCESS):
            connected = True
            why = ""
            has_exited = False
        elif line.startswith(EXIT):
            after = lines[number + 1 : number + 3]
            details = [part for part in after if part.startswith("[")] or after[:1] or [line]
            connected = False
            why = details[0]
            has_exited = True
        elif line.startswith(RETRY) and not has_exited:  # after an exit it is a helper that looks for its SuperNode
            connected = False
            why = line
        elif line.startswith("Uvicorn running"):  # a new start
            has_exited = False
    return connected, why


def classify_reason(line: str) -> str:
    """Determine what a line says is the matter with a connection: a key of ``ADVICE``, or ``other``."""
    low = line.lower()
    if "hostname mismatch" in low or "ip address mismatch" in low or "not valid for" in low:
        return "certificate-name"
    if "certificate has expired" in low or "not yet valid" in low:
        return "certificate-time"
    if "certificate_verify_failed" in low:
        return "certificate"
    if "ssl" in low or "tls" in low:
        return "tls"
    return "key" if "[code: 2004]" in low or "failed to activate" in low else "other"


def probe(target: tuple[str, int], *, through_proxy: bool) -> tuple[str, str]:
    """Find out by a TCP connection what may be the matter.

    Args:
        target: host and port of the SuperLink, or of the proxy before it.
        through_proxy: whether it is a proxy.

    Returns:
        A key of ``ADVICE`` and a line; two empty texts if the connection is accepted.
    """
    host, port = target
    try:
        socket.create_connection(target, timeout=TIMEOUT).close()
    except socket.gaierror as error:
        kind, text = "name", f"{host}: {error.strerror}"
    except ConnectionRefusedError as error:
        kind, text = "refused", f"{host}:{port}: {error.strerror}"
    except OSError as error:
        kind, text = "unreachable", f"{host}:{port}: {error.strerror or error}"
    else:
        return "", ""
    return ("proxy", f"proxy {text}") if through_proxy else (kind, text)


class ConnectionWatch:
    """Looks at the SuperNode's log again and again, and notes what has changed.

    Args:
        state_dir: of the site.
        log: of the SuperNode.
        address: HOST:PORT of the SuperLink.
        target: where a connection of our own goes to: the SuperLink's host and port, or those of the proxy before it.
        through_proxy: whether ``target`` is a proxy.
    """

    def __init__(
        self, state_dir: Path, log: Path, *, address: str, target: tuple[str, int], through_proxy: bool = False
    ) -> None:
        self._file = connection_file(state_dir)
        self._log = log
        self._start = log.stat().st_size if log.is_file() else 0
        self._target = target
        self._through_proxy = through_proxy
        self._last = Connection(address=address, connected=None, since=time.time())
        self._write()

    def look(self) -> str:
        """Note how the site is connected now.

        Returns:
            A line for people, if it has changed; else an empty text.
        """
        connected, line = judge_log(self._read())
        kind = classify_reason(line) if connected is False else ""
        if kind == "other":
            kind, line = self._explain(line)
        last = self._last
        if (connected, kind) == (last.connected, last.kind):
            return ""
        since = last.since if connected == last.connected else time.time()
        self._last = Connection(address=last.address, connected=connected, since=since, kind=kind, reason=line)
        self._write()
        return describe_link(self._last)

    def _explain(self, line: str) -> tuple[str, str]:
        """Return what is the matter by a connection of our own, or ``other`` with the log's line."""
        kind, text = probe(self._target, through_proxy=self._through_proxy)
        if kind:
            return kind, text
        return ("proxy", line) if self._through_proxy else ("other", line)

    def _read(self) -> str:
        """Read the end of the log, without what was there before this watch."""
        if not self._log.is_file():
            return ""
        size = self._log.stat().st_size
        if size < self._start:  # it was put aside
            self._start = 0
        with self._log.open("rb") as stream:
            stream.seek(max(self._start, size - MAX_TAIL))
            return stream.read().decode("utf-8", "replace")

    def _write(self) -> None:
        part = self._file.with_name(f"{self._file.name}.part")
        part.write_text(json.dumps(asdict(self._last)))
        part.replace(self._file)


def describe_link(connection: Connection) -> str:
    """Describe a connection in one line: to whom, or since when not and why, and what to do."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(connection.since))
    if connection.connected:
        return f"connected to {connection.address} since {at}"
    if connection.connected is None:
        return f"connecting to {connection.address} since {at}"
    advice = f" -> {connection.advice}" if connection.advice else ""
    return f"no connection to {connection.address} since {at}: {connection.reason}{advice}"
