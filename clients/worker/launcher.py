"""The launcher starts the processes of the ranks on this machine, and ends them, all together.

torchrun's elastic agent does the same, but needs torch in the worker's own process (150 MiB, and seconds at every
start), reads pickled state from a port on all interfaces, and gives up after so many deaths in the worker's whole life.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from clients.runtime.paths import python_path
from clients.site import SiteConfig, parse_address
from fedcompress.errors import ConfigError

KEPT_STARTS = 8  # folders with what the ranks of the last workers printed, the present one's included
TERM_TIMEOUT = 5.0  # seconds that ranks have to end after SIGTERM, before SIGKILL


class Launcher:
    """Starts, watches and ends the ranks of one node."""

    def __init__(self, environment: Mapping[str, str], logs: Path, ranks: int, *, first: int = 0) -> None:
        """Start nothing yet, but make room for the logs.

        Args:
            environment: variables of all ranks, added to this process's own.
            logs: folder for what they print; a folder of this worker is made in it at the first start.
            ranks: how many run here.
            first: number of the first of them among the ranks of all nodes.
        """
        self._environment = dict(environment)
        self._ranks = ranks
        self._first = first
        forget_old_starts(logs)
        self.folder = logs / f"ranks-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        self._running: dict[int, subprocess.Popen[bytes]] = {}  # by rank

    def start(self, group: int, world: int) -> None:
        """Start this node's ranks as part of group ``group`` of ``world`` ranks; those of an older group are ended."""
        self.stop()
        folder = self.folder / str(group)
        folder.mkdir(parents=True, exist_ok=True)
        for local_rank in range(self._ranks):
            rank = self._first + local_rank
            variables = {
                "RANK": rank,
                "LOCAL_RANK": local_rank,
                "WORLD_SIZE": world,
                "LOCAL_WORLD_SIZE": self._ranks,
                "FEDCOMPRESS_GROUP": group,
                "FEDCOMPRESS_PARENT": os.getpid(),
            }
            environment = {**os.environ, **self._environment, **{k: str(v) for k, v in variables.items()}}
            with (folder / f"{rank}.log").open("ab") as log:
                self._running[rank] = subprocess.Popen(
                    [sys.executable, "-u", "-m", "clients.training.rank"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                )

    def find_dead_rank(self) -> str:
        """Return which rank has ended, and how, as text; empty while all run."""
        for rank, process in self._running.items():
            code = process.poll()
            if code is not None:
                cause = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
                return f"rank {rank} ended {cause}"
        return ""

    def stop(self) -> None:
        """End the ranks by SIGTERM, and by SIGKILL those that have not ended after ``TERM_TIMEOUT``."""
        for process in self._running.values():
            process.terminate()
        deadline = time.monotonic() + TERM_TIMEOUT
        for process in self._running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
        for process in self._running.values():
            process.kill()
            process.wait()
        self._running.clear()


def forget_old_starts(logs: Path) -> None:
    """Remove what the ranks of all but the last few workers printed, so that there is room for one more folder."""
    logs.mkdir(parents=True, exist_ok=True)
    folders = sorted((f for f in logs.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime)
    for folder in folders[: -KEPT_STARTS + 1]:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)


def interface_towards(host: str) -> str:
    """Return the name of the network interface by which a host is reached.

    Raises:
        ConfigError: there is none.
    """
    import psutil

    try:
        family, _, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing: a datagram socket only chooses its route
            own_address = probe.getsockname()[0]
    except OSError as error:
        raise ConfigError("engine.rendezvous", host, f"must be the address of node 0: {error}") from error
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.address.partition("%")[0] == own_address for a in addresses):
            return name
    rule = f"must be reached by an interface of this machine: {own_address} is of none"
    raise ConfigError("engine.rendezvous", host, rule)


def rank_environment(site: SiteConfig, site_file: Path, address: str) -> dict[str, str]:
    """Return the variables that all ranks of this node find in their environment.

    Args:
        site: the checked site.toml; its ``state_dir`` is where the ranks of this node write.
        site_file: path of that site.toml.
        address: where the rank group listens, as gRPC writes it: ``unix:PATH`` or ``HOST:PORT``.

    Returns:
        Variables by name. gloo, and with several nodes NCCL, are bound to one network interface, unless the
        environment already names another.

    Raises:
        ConfigError: node 0 cannot be reached from here.
    """
    threads = str(site.engine.threads)
    host = "127.0.0.1"
    interface = "lo"
    if site.engine.nodes > 1:
        host = parse_address(site.engine.rendezvous)[0]
        interface = interface_towards(host)
    variables = {
        "FEDCOMPRESS_SITE_TOML": str(site_file),
        "FEDCOMPRESS_STATE_DIR": str(site.state_dir),
        "FEDCOMPRESS_HUB": address,
        "PYTHONPATH": python_path(),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "FEDCOMPRESS_STORE_HOST": host,
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", interface),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if site.engine.nodes > 1:
        variables["NCCL_SOCKET_IFNAME"] = os.environ.get("NCCL_SOCKET_IFNAME", interface)
    return variables
