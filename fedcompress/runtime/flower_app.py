"""The folder of the Flower app is found, and the environment is made that Flower's processes need."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fedcompress.errors import ProcessError


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

    They turn off telemetry, update checks and installations, give each process one thread, and put the scripts of
    this Python first on the path.

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
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
    }
