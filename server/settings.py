"""The coordinator's settings are read from a CONFIG.toml.

[coordinator]
state_dir = "coordinator"    # ledger, blobs, logs; relative to this file
listen = "127.0.0.1:8000"    # where the SuperLink listens; 0.0.0.0:8000 for sites on other machines
superlink = ""               # or HOST:PORT of a SuperLink on this machine that somebody else keeps up
watch = ""                   # HOST:PORT of the page of `fedcompress watch --web`, while the run goes on
ca = "ca.crt"                # TLS, PEM files, relative to this file
certificate = "server.pem"   # for 127.0.0.1 too, by which this machine reaches its SuperLink
key = "server.key"
insecure = false             # without TLS; for networks that are your own
supernode_keys = true        # only SuperNodes whose keys are registered; false where keys cannot be asked for:
                             # with insecure = true, and with another's superlink
node_keys = ""               # folder of NAME.node.pub, as `certs new --node` makes them, to register at each start
restarts = 5                 # in a row without a round that was committed
first_pause = 1.0            # seconds before a restart, doubled with each in a row
longest_pause = 60.0
start_timeout = 120.0        # seconds until SuperLink and coordinator must be there

[run]
initial-adapter = "initial"  # that `fedcompress template` makes, relative to this file
rounds = 5                   # and all other keys of the run config
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fedcompress.config.run_config import RunConfig, parse_run_config
from fedcompress.errors import ConfigError, one_of

TLS = ("ca", "certificate", "key")  # keys whose values are PEM files
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # addresses to listen on that nobody can connect to -> one that one can


@dataclass(frozen=True, kw_only=True)
class CoordinatorConfig:
    """The section ``[coordinator]``, see the head of this file; paths are absolute."""

    state_dir: str
    listen: str = "127.0.0.1:8000"
    superlink: str = ""
    watch: str = ""
    ca: str = ""
    certificate: str = ""
    key: str = ""
    insecure: bool = False
    supernode_keys: bool = True
    node_keys: str = ""
    restarts: int = 5
    first_pause: float = 1.0  # seconds
    longest_pause: float = 60.0  # seconds
    start_timeout: float = 120.0  # seconds

    def __post_init__(self) -> None:
        for name in ("listen", "superlink", "watch"):
            if name == "listen" or getattr(self, name):
                parse_host_and_port(f"coordinator.{name}", getattr(self, name))
        ports = [parse_host_and_port("coordinator.watch", at)[1] for at in (self.watch, self.address) if self.watch]
        if len(set(ports)) == 1:
            raise ConfigError("coordinator.watch", self.watch, f"must have another port than the SuperLink: {ports[0]}")
        pem_keys = [name for name in TLS if getattr(self, name)]
        if self.insecure and pem_keys:
            rule = f"cannot go with {', '.join(pem_keys)}: choose TLS or none"
            raise ConfigError("coordinator.insecure", "true", rule)
        if self.insecure and self.supernode_keys:
            raise ConfigError("coordinator.supernode_keys", "true", "needs TLS: set ca, certificate and key")
        if self.superlink and (self.certificate or self.key or self.supernode_keys):
            rule = "is another's SuperLink, which has its own certificate, key and supernode_keys: only ca goes with it"
            raise ConfigError("coordinator.superlink", self.superlink, rule)
        if self.node_keys and not (self.supernode_keys and Path(self.node_keys).is_dir()):
            rule = "must be a folder of NAME.node.pub, and needs supernode_keys"
            raise ConfigError("coordinator.node_keys", self.node_keys, rule)
        for name in TLS:
            path = getattr(self, name)
            if not path and not self.insecure and not self.superlink:
                raise ConfigError(f"coordinator.{name}", "''", "must be set, or insecure = true")
            if path and not Path(path).is_file():
                raise ConfigError(f"coordinator.{name}", path, "must be an existing file")
        if not 0 <= self.restarts <= 1000:
            raise ConfigError("coordinator.restarts", self.restarts, "must be from 0 to 1000")
        for name in ("first_pause", "longest_pause", "start_timeout"):
            if not 0 < getattr(self, name) <= 86400:
                raise ConfigError(f"coordinator.{name}", getattr(self, name), "must be above 0, at most 86400 seconds")

    @property
    def state_path(self) -> Path:
        """Return the state directory."""
        return Path(self.state_dir)

    @property
    def address(self) -> str:
        """Return the HOST:PORT by which this machine reaches the SuperLink."""
        if self.superlink:
            return self.superlink
        host, port = parse_host_and_port("coordinator.listen", self.listen)
        reachable = ANY.get(host, host)
        return f"[{reachable}]:{port}" if ":" in reachable else f"{reachable}:{port}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Holds what a CONFIG.toml says.

    Attributes:
        coordinator: the section ``[coordinator]``.
        run: the run config of the section ``[run]``.
        flat: the run config as it is written: only the keys that are set.
    """

    coordinator: CoordinatorConfig
    run: RunConfig
    flat: dict[str, Any]

    def to_dict(self, file: Path) -> dict[str, Any]:
        """Return what is saved in the state directory for the other commands; ``file`` is the CONFIG.toml."""
        return {"config": str(file), "coordinator": asdict(self.coordinator), "run": self.flat}


def parse_host_and_port(field: str, address: str) -> tuple[str, int]:
    """Parse the HOST:PORT of a field into both, an IPv6 address without its brackets.

    Raises:
        ConfigError: it is something else.
    """
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536 or "/" in host:
        raise ConfigError(field, repr(address), "must be HOST:PORT")
    return host.strip("[]"), int(port)


def load_settings(file: Path) -> Settings:
    """Load a CONFIG.toml.

    Raises:
        ConfigError: it is absent or malformed; a section or key is unknown, of a wrong type or out of range.
    """
    raw = _read_toml(file)
    for name, section in raw.items():
        if name not in ("coordinator", "run"):
            raise ConfigError(name, "[...]", "unknown section: must be coordinator or run")
        if not isinstance(section, dict):
            raise ConfigError(name, repr(section), "must be a section")
    base = file.resolve().parent
    coordinator = _parse_coordinator(raw.get("coordinator", {}), base)
    flat = dict(raw.get("run", {}))
    if "state-dir" in flat:
        raise ConfigError("run.state-dir", flat["state-dir"], "must not be set: it is coordinator.state_dir")
    if isinstance(flat.get("initial-adapter"), str) and flat["initial-adapter"]:
        flat["initial-adapter"] = _absolute(base, flat["initial-adapter"])
    try:
        flat = {"state-dir": coordinator.state_dir, **flat}
        return Settings(coordinator=coordinator, run=parse_run_config(flat), flat=flat)
    except ConfigError as error:
        raise ConfigError(f"run.{error.field}", error.value, error.rule) from error


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        rule = f"must be a TOML file with [coordinator] and [run]: {error.strerror}"
        raise ConfigError("CONFIG", file, rule) from error
    except ValueError as error:  # of TOML or UTF-8
        raise ConfigError("CONFIG", file, f"must be TOML: {error}") from error


def _absolute(base: Path, path: str) -> str:
    return os.path.abspath(base / Path(path).expanduser())


def _parse_coordinator(section: dict[str, Any], base: Path) -> CoordinatorConfig:
    known = {f.name: str(f.type) for f in fields(CoordinatorConfig)}
    types: dict[str, type] = {"str": str, "bool": bool, "int": int, "float": float}
    kwargs: dict[str, Any] = {}
    for key, value in section.items():
        if key not in known:
            raise ConfigError(f"coordinator.{key}", value, f"unknown key: {one_of(sorted(known), key)}")
        kind = types[known[key]]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ConfigError(f"coordinator.{key}", repr(value), f"must be of type {kind.__name__}")
        is_path = key in ("state_dir", "node_keys", *TLS) and value
        kwargs[key] = _absolute(base, str(value)) if is_path else value
    if kwargs.get("insecure") or kwargs.get("superlink"):
        kwargs.setdefault("supernode_keys", False)
    if not kwargs.get("state_dir"):
        raise ConfigError("coordinator.state_dir", "''", "must be set")
    return CoordinatorConfig(**kwargs)
