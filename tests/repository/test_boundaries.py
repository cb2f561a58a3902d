"""What may be imported where, how fast the command line answers, and generated code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import ROOT


def loaded_after(statement: str, *names: str) -> set[str]:
    """Which of the packages are imported by a statement, in a fresh process."""
    code = f"{statement}\nimport sys\nprint(*(n for n in {names!r} if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HEAVY = (
    "torch",
    "transformers",
    "deepspeed",
    "bitsandbytes",
    "peft",
    "accelerate",
    "matplotlib",
    "datasets",
    "pyarrow",
)


@pytest.mark.parametrize(
    "statement",
    [
        "import fedcompress.cli.main",
        "import fedcompress.merging.data_driven",
        "import clients.app",
        "import server.app",
        "import clients.worker.main",
        "import clients.worker.node_agent",
        "import clients.worker.service",
    ],
)
def test_nothing_heavy_is_imported(statement: str) -> None:
    assert loaded_after(statement, *HEAVY) == set()


def test_the_command_line_does_not_import_flower() -> None:
    assert loaded_after("import fedcompress.cli.main", "flwr", "grpc") == set()


def test_help_is_fast() -> None:
    times = []
    for _ in range(3):
        started = time.monotonic()
        script = Path(sys.executable).parent / "fedcompress"
        subprocess.run([script, "--help"], check=True, capture_output=True)
        times.append(time.monotonic() - started)
    assert min(times) < 0.5


def test_generated_code_is_current(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run([ROOT / "protos" / "generate.sh", tmp_path], check=True, capture_output=True, env=environment)
    fresh = {p.name: p.read_text() for p in (tmp_path / "fedcompress" / "proto" / "v1").iterdir()}
    assert set(fresh) == {p.name for p in (ROOT / "fedcompress" / "proto" / "v1").glob("*_pb2*")}
    for name, text in fresh.items():
        assert (ROOT / "fedcompress" / "proto" / "v1" / name).read_text() == text, f"{name}: run make protos"


def test_nothing_received_is_unpickled_or_evaluated() -> None:
    forbidden = ("import pickle", "torch.load(", "shell=True", " eval(", " exec(")
    for folder in ("fedcompress", "clients", "server"):
        for path in (ROOT / folder).rglob("*.py"):
            text = re.sub(r"torch\.load\([^()]*weights_only=True\)", "", path.read_text())  # weights alone
            text = text.replace("def eval(", "")  # torch's name of a mode
            assert not [word for word in forbidden if word in text], path
