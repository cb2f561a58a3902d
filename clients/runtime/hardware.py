"""Memory of this machine, without importing torch."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

MIB = 1 << 20
QUERY = "index,name,memory.total,memory.used"
TIMEOUT = 5.0  # seconds; a driver in trouble answers late or never


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as nvidia-smi has it."""

    index: int
    name: str
    total: int  # bytes
    used: int  # bytes


def gpus() -> list[Gpu]:
    """The NVIDIA GPUs of this machine; none if there is no nvidia-smi, or it does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_gpus(done.stdout) if done.returncode == 0 else []


def parse_gpus(text: str) -> list[Gpu]:
    """Rows of nvidia-smi's CSV; others, such as ``[N/A]`` where a size should be, are left out."""
    found = []
    for line in text.splitlines():
        parts = [p.strip() for p in line.split(",")]
        with contextlib.suppress(ValueError):
            index, name, total, used = parts
            found.append(Gpu(index=int(index), name=name, total=int(total) * MIB, used=int(used) * MIB))
    return found


def resident(pids: Iterable[int]) -> int:
    """Resident bytes of processes, those that have ended left out."""
    import psutil

    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            total += int(psutil.Process(pid).memory_info().rss)
    return total


def host_memory() -> tuple[int, int]:
    """Total and available bytes."""
    import psutil

    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)
