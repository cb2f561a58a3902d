"""The folder of the Flower app is found, and the environment is made that Flower's processes need."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from fedcompress.errors import ProcessError

LOOPBACK = ("127.0.0.1", "localhost", "::1")  # never asked for through a proxy


def app_folder() -> Path:
    """Find the Flower app: the folder with clients/, server/ and pyproject.toml.

    Raises:
        ProcessError: fedcompress is installed without its sources.
    """
    folder = Path(__file__).resolve().parents[2]
    if not (folder / "clients" / "app.py").is_file() or not (folder / "pyproject.toml").is_file():
        raise ProcessError(f"app: {folder}: must hold clients/ and server/: run this from a checkout of fedcompress")
    return folder


def environment(home: Path) -> dict[str, str]:
    """Build the environment variables that all processes of a federation get in addition to those of the user.

    They turn off telemetry, update checks and installations, give each process one thread, put the scripts of this
    Python first on the path, and keep loopback from proxies.

    Args:
        home: ``FLWR_HOME``, where Flower keeps its configuration and files.
    """
    scripts = str(Path(sys.executable).parent)
    return {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        **without_proxy(os.environ),
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
    }


def without_proxy(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that name hosts without a proxy, with loopback in them beside the user's own.

    Both spellings get the hosts of both, since programs read one or the other. gRPC's own, ``no_grpc_proxy``, hides
    them where it is set, and only there it is given.
    """
    given = [environ.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    found = {name: _add_loopback(",".join(given)) for name in ("no_proxy", "NO_PROXY")}
    if "no_grpc_proxy" in environ:
        found["no_grpc_proxy"] = _add_loopback(environ["no_grpc_proxy"])
    return found


def _add_loopback(hosts: str) -> str:
    """Return a list of hosts, separated by commas, with loopback and without repetitions."""
    named = [host.strip() for host in hosts.split(",") if host.strip()]
    return ",".join(dict.fromkeys([*named, *LOOPBACK]))
