"""Processes of the ranks on this machine: they are started and ended together.

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

from clients.site import SiteConfig, parse_address
from fedcompress.errors import ConfigError

KEPT_STARTS = 8  # folders with what ranks of earlier workers printed
TERM_TIMEOUT = 5.0  # seconds


class Launcher:
    """The ranks of one node."""

    def __init__(self, environment: Mapping[str, str], logs: Path, ranks: int, *, first: int = 0) -> None:
        """Nothing is started yet.

        Args:
            environment: of all ranks, beside this process's own.
            logs: folder for what they print.
            ranks: how many run here.
            first: number of the first of them.
        """
        self._environment, self._ranks, self._first = dict(environment), ranks, first
        forget_old_starts(logs)
        self.folder = logs / f"ranks-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, group: int, world: int) -> None:
        """Start this node's ranks as part of a group of ``world``; those of an older group are ended."""
        self.stop()
        folder = self.folder / str(group)
        folder.mkdir(parents=True, exist_ok=True)
        for local in range(self._ranks):
            rank = self._first + local
            facts = {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": self._ranks}
            facts |= {"FEDCOMPRESS_GROUP": group, "FEDCOMPRESS_PARENT": os.getpid()}
            environment = {**os.environ, **self._environment, **{k: str(v) for k, v in facts.items()}}
            with (folder / f"{rank}.log").open("ab") as log:
                self._running[rank] = subprocess.Popen(
                    [sys.executable, "-u", "-m", "clients.training.rank"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                )

    def find_dead_rank(self) -> str:
        """Which rank has ended, and how; empty while all run."""
        for rank, process in self._running.items():
            code = process.poll()
            if code is not None:
                how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
                return f"rank {rank} ended {how}"
        return ""

    def stop(self) -> None:
        """End the ranks: by SIGTERM, and by SIGKILL those that do not follow."""
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
    """Keep what the ranks of the last few workers printed."""
    logs.mkdir(parents=True, exist_ok=True)
    found = sorted((f for f in logs.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime)
    for folder in found[: -KEPT_STARTS + 1]:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)


def interface_towards(host: str) -> str:
    """Name of the network interface by which a host is reached.

    Raises:
        ConfigError: there is none.
    """
    import psutil

    try:
        family, _, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            own = probe.getsockname()[0]
    except OSError as error:
        raise ConfigError("engine.rendezvous", host, f"must be the address of node 0: {error}") from error
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.address.partition("%")[0] == own for a in addresses):
            return name
    raise ConfigError("engine.rendezvous", host, f"must be reached by an interface of this machine: {own} is of none")


def rank_environment(site: SiteConfig, site_file: Path, address: str) -> dict[str, str]:
    """What ranks find in their environment.

    Args:
        site: as checked.
        site_file: its site.toml.
        address: where the hub listens, as gRPC writes it.

    Raises:
        ConfigError: node 0 cannot be reached from here.
    """
    threads = str(site.engine.threads)
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    host, interface = "127.0.0.1", "lo"
    if site.engine.nodes > 1:
        host = parse_address(site.engine.rendezvous)[0]
        interface = interface_towards(host)
    return {
        "FEDCOMPRESS_SITE_TOML": str(site_file),
        "FEDCOMPRESS_STATE_DIR": str(site.state_dir),
        "FEDCOMPRESS_HUB": address,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "FEDCOMPRESS_STORE_HOST": host,
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", interface),
        **({"NCCL_SOCKET_IFNAME": os.environ.get("NCCL_SOCKET_IFNAME", interface)} if site.engine.nodes > 1 else {}),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
    }
