"""Memory of processes, machine and GPUs; nvidia-smi is a script that answers well, badly or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clients.runtime import hardware
from clients.runtime.hardware import Gpu, gpus, host_memory, parse_gpus, resident

ROWS = "0, NVIDIA H200, 143771, 521\n1, MIG, [N/A], [N/A]\nnonsense\n"
H200 = Gpu(index=0, name="NVIDIA H200", total=143771 << 20, used=521 << 20)


def test_rows_that_are_not_whole_are_left_out() -> None:
    rows = parse_gpus(ROWS)
    assert [(g.index, g.name, g.total, g.used) for g in rows] == [(0, "NVIDIA H200", 143771 << 20, 521 << 20)]
    assert parse_gpus("") == []


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (f"cat <<'END'\n{ROWS}END", [H200]),
        (f"cat <<'END'\n{ROWS}END\nexit 9", []),
        ("exec sleep 60", []),
    ],
    ids=["answers", "fails", "hangs"],
)
def test_nvidia_smi(script: str, expected: list[Gpu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(hardware, "TIMEOUT", 5.0 if expected else 0.5)
    assert gpus() == expected


def test_a_machine_without_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus() == []


def test_memory_of_processes_and_machine() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        both = resident([os.getpid(), child.pid])
        assert both > resident([child.pid]) > 0
    finally:
        child.communicate(b"\n")
    assert resident([child.pid]) == 0, "it has ended"
    total, available = host_memory()
    assert both < total
    assert 0 < available <= total
