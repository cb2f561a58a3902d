"""``fedcompress site up`` runs the SuperNode and the warm worker of a site, in the foreground or detached."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from clients.commands.common import is_terminal, progress_line, python_environment, read_worker_status, site_path
from clients.commands.status import worker_lines
from clients.commands.supervisor import (
    NODE,
    SiteSupervisor,
    end_orphans,
    make_log_dir,
    up_file,
    up_lock,
    worker_command,
)
from clients.network.connection import ConnectionWatch, connection_file
from clients.network.proxy_route import find_route, proxy_variables, system_proxies
from clients.runtime.paths import make_state_dir
from clients.site import SiteConfig
from fedcompress.errors import ConfigError, LockedError, ProcessError
from fedcompress.formatting import escaped
from fedcompress.runtime.flower_app import app_folder, environment
from fedcompress.runtime.process_group import ProcessGroup, free_port, script
from fedcompress.runtime.supervision import read_facts, stop_signals
from fedcompress.storage.locks import hold, holder
from fedcompress.traffic.relay import Counter, MeteringRelay, wire_path

POLL = 0.5  # seconds between looks at the processes
LOOK = 2.0  # seconds between looks at the worker's status
DETACH_TIMEOUT = 30.0  # seconds until a detached ``up`` holds its lock
STATUS_TIMEOUT = 1.0  # seconds that the worker has to answer, so that the view does not stand still
LINES = 8  # last lines that were said, in the live view
# what to do for a SuperNode without a key
KEY_REMEDY = (
    "make one with `fedcompress certs new --node NAME`, let NAME.node.pub be registered, set superlink.node_key"
)
KEY_PAUSE = 60  # seconds for which a SuperLink takes a key of a crashed SuperNode for one in use


@dataclass(frozen=True, kw_only=True)
class Options:
    """Holds what can be set from the command line.

    Attributes:
        site: path of site.toml.
        superlink: HOST:PORT; empty: site.toml's.
        insecure: whether the connection is without TLS.
        root_certificates: path of a PEM file; None: site.toml's.
        auth_supernode_private_key: path of the SuperNode's key; None: site.toml's.
        detach: go on in the background.
        as_json: print JSON, with ``detach``.
    """

    site: str
    superlink: str = ""  # empty: site.toml's
    insecure: bool = False
    root_certificates: str | None = None
    auth_supernode_private_key: str | None = None
    detach: bool = False
    as_json: bool = False

    def __post_init__(self) -> None:
        if self.superlink:
            host_and_port(self.superlink)
        if self.insecure and self.root_certificates:
            raise ConfigError("--insecure", True, "cannot go with --root-certificates: choose TLS or none")
        if self.insecure and self.auth_supernode_private_key:
            raise ConfigError("--insecure", True, "cannot go with --auth-supernode-private-key: keys need TLS")
        for name in ("root_certificates", "auth_supernode_private_key"):
            value = getattr(self, name)
            if value and not Path(value).is_file():
                raise ConfigError("--" + name.replace("_", "-"), value, "must be an existing file")


def complete_options(options: Options, site: SiteConfig) -> Options:
    """Return the options, with what site.toml says where the command line says nothing.

    Raises:
        ConfigError: neither has an address, or what they have does not go together.
    """
    configured = site.superlink
    address = options.superlink or configured.address
    if not address:
        raise ConfigError("--superlink", "nothing", "must be given here, or as superlink.address in site.toml")
    return replace(
        options,
        superlink=address,
        root_certificates=options.root_certificates or _text(configured.root_certificates),
        auth_supernode_private_key=options.auth_supernode_private_key or _text(configured.node_key),
    )


def _text(path: Path | None) -> str | None:
    return str(path) if path is not None else None


def host_and_port(address: str) -> tuple[str, int]:
    """Return the parts of HOST:PORT.

    Raises:
        ConfigError: it is something else.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536 or "/" in host:
        raise ConfigError("--superlink", repr(address), "must be HOST:PORT")
    return host.strip("[]"), int(port)


def node_command(options: Options, site_file: Path) -> list[str | Path]:
    """Return the SuperNode's command; it uses TLS unless the options say ``insecure``.

    Raises:
        ConfigError: the path of site.toml has quotes, with which Flower cannot be told it.
    """
    if '"' in str(site_file):
        raise ConfigError("SITE", site_file, "its path must not contain quotes")
    command: list[str | Path] = [script("flower-supernode"), "--superlink", options.superlink]
    if options.insecure:
        command.append("--insecure")
    elif options.root_certificates:
        command += ["--root-certificates", Path(options.root_certificates).resolve()]
    if options.auth_supernode_private_key:
        command += ["--auth-supernode-private-key", Path(options.auth_supernode_private_key).resolve()]
    return [*command, "--port", str(free_port()), "--node-config", f'site-config="{site_file}"']


def explain_exit(options: Options) -> str:
    """Return what may be the matter with a SuperNode that ends, as far as keys are; empty if nothing."""
    if options.auth_supernode_private_key:
        return (
            "the SuperLink refuses its key until the coordinator has registered it, and may do so for "
            f"{KEY_PAUSE} s after a crash: it is tried again"
        )
    return "" if options.insecure else f"it has no key, and a SuperLink takes none without by default: {KEY_REMEDY}"


def run(options: Options) -> int:
    """Start both processes and keep them up, here or in a detached process; return the exit code.

    Raises:
        ConfigError: an option or site.toml is wrong.
        LockedError: an ``up`` of this site runs already.
        ProcessError: a detached one did not start.
    """
    site_file = site_path(options.site)
    site = SiteConfig.load(site_file)
    pid = holder(up_lock(site.state_dir))
    if pid:
        raise LockedError(_up_already(site) + f" {pid}: `fedcompress site down` ends it")
    options = complete_options(options, site)
    node_command(options, site_file)  # what is wrong with it is said before anything starts
    if options.detach:
        return _detach(options, site, site_file)
    make_state_dir(site.state_dir)
    with hold(up_lock(site.state_dir), _up_already(site)):
        return _stay(options, site, site_file)


def _up_already(site: SiteConfig) -> str:
    return f"site {site.name}: is up already, with pid"


def _detach(options: Options, site: SiteConfig, site_file: Path) -> int:
    """Start the same command in a session of its own, and wait until it holds its lock."""
    inner = asdict(replace(options, site=str(site_file), detach=False, as_json=False))
    log = make_log_dir(site) / "up.log"
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "clients.commands", "up", json.dumps(inner)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            env=python_environment({}),
        )
    deadline = time.monotonic() + DETACH_TIMEOUT
    while read_facts(up_file(site.state_dir)).get("by") != process.pid:
        if process.poll() is not None or time.monotonic() > deadline:
            lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
            raise ProcessError(f"up: did not start: {lines[-1]} (see {log})")
        time.sleep(0.1)
    if options.as_json:
        print(json.dumps({"site": site.name, "pid": process.pid, "log": str(log)}))
    else:
        print(f"{site.name}: up, pid {process.pid}, log {log}")
    return 0


@contextmanager
def meter_link(options: Options, site: SiteConfig) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the address for the SuperNode, and variables that lead it through a relay that counts, if that can be."""
    host, port = host_and_port(options.superlink)
    route = find_route(host, port, insecure=options.insecure, proxies=system_proxies())
    if route is None:
        yield options.superlink, {}
        return
    with (
        Counter(wire_path(site.state_dir)) as counter,
        MeteringRelay(route.target, counter, tunnel=route.tunnel) as relay,
    ):
        variables = proxy_variables(route, relay.address)
        yield options.superlink if variables else relay.address, variables


def watch_connection(options: Options, site: SiteConfig) -> ConnectionWatch:
    """Return what finds out whether the SuperNode is connected, from its log as it grows from now on."""
    host, port = host_and_port(options.superlink)
    route = find_route(host, port, insecure=options.insecure, proxies=system_proxies())
    return ConnectionWatch(
        site.state_dir,
        make_log_dir(site) / f"{NODE}.log",
        address=options.superlink,
        target=route.target if route is not None else (host, port),
        through_proxy=route is not None and bool(route.proxy),
    )


def _stay(options: Options, site: SiteConfig, site_file: Path) -> int:
    """Keep both processes up, and show how they are, until this process is told to stop."""
    home = site.state_dir / "flower"
    home.mkdir(parents=True, exist_ok=True)
    view = SiteLiveView(site) if is_terminal() else SitePlainView(site)
    group = ProcessGroup(make_log_dir(site), environment(home))
    with stop_signals() as stopped, meter_link(options, site) as (address, variables), group, view:
        for orphan in end_orphans(site.state_dir):
            view.say(f"ended what was left over: {orphan}")
        if options.insecure:
            view.say(f"warning: --insecure: the connection to {options.superlink} is not encrypted")
        supervisor = SiteSupervisor(
            site=site,
            site_file=site_file,
            group=group,
            node=node_command(replace(options, superlink=address), site_file),
            worker=worker_command(site_file),
            advice=explain_exit(options),
            say=view.say,
            cwd=app_folder(),
            node_env={**site.link.environment(), **variables},
        )
        watch = watch_connection(options, site)
        shown_at = 0.0
        while not stopped():
            supervisor.tick()
            if time.monotonic() - shown_at > LOOK:
                if change := watch.look():
                    view.say(change)
                view.show()
                shown_at = time.monotonic()
            time.sleep(POLL)
        view.say("stopping")
    up_file(site.state_dir).unlink(missing_ok=True)
    connection_file(site.state_dir).unlink(missing_ok=True)
    print(f"{site.name}: down", flush=True)
    return 0


class SitePlainView:
    """Prints a line when something changes, for logs."""

    def __init__(self, site: SiteConfig) -> None:
        self._site = site
        self._last = ""

    def __enter__(self) -> SitePlainView:
        return self

    def __exit__(self, *error: Any) -> None:
        return None

    def say(self, line: str) -> None:
        """Print a line with the time."""
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self._site.name}: {escaped(line)}", flush=True)

    def show(self) -> None:
        """Print what the worker does, if it does something else than before."""
        reply = read_worker_status(self._site.state_dir, timeout=STATUS_TIMEOUT)
        line = progress_line(reply) if reply is not None else ""
        if line and line != self._last:
            self.say(line)
            self._last = line


class SiteLiveView:
    """Redraws the status in place, with the last lines that were said below it."""

    def __init__(self, site: SiteConfig) -> None:
        from rich.live import Live

        self._site = site
        self._lines: list[str] = []  # the last ones that were said
        self._live = Live(auto_refresh=False)

    def __enter__(self) -> SiteLiveView:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def say(self, line: str) -> None:
        """Add a line, and redraw."""
        self._lines = [*self._lines, f"{time.strftime('%H:%M:%S')} {escaped(line)}"][-LINES:]
        self.show()

    def show(self) -> None:
        """Draw the status and the lines anew."""
        from rich.text import Text

        lines = worker_lines(self._site, read_worker_status(self._site.state_dir, timeout=STATUS_TIMEOUT))
        text = "\n".join([*lines, "", *self._lines, "", "Ctrl-C stops the site"])
        self._live.update(Text(text), refresh=True)
