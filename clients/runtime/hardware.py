"""Reads the memory of this machine, its processes and its GPUs, without importing torch."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

MIB = 1 << 20
QUERY = "index,name,memory.total,memory.used"  # columns of nvidia-smi, sizes in MiB
TIMEOUT = 5.0  # seconds; a driver in trouble answers late or never


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Describes a GPU as nvidia-smi has it."""

    index: int
    name: str
    total: int  # bytes
    used: int  # bytes


def gpus() -> list[Gpu]:
    """Return the NVIDIA GPUs of this machine; none if there is no nvidia-smi, or it does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_gpus(result.stdout) if result.returncode == 0 else []


def parse_gpus(text: str) -> list[Gpu]:
    """Parse the rows of nvidia-smi's CSV; others, such as with ``[N/A]`` where a size should be, are left out."""
    cards = []
    for line in text.splitlines():
        parts = [p.strip() for p in line.split(",")]
        with contextlib.suppress(ValueError):
            index, name, total, used = parts
            cards.append(Gpu(index=int(index), name=name, total=int(total) * MIB, used=int(used) * MIB))
    return cards


def resident(pids: Iterable[int]) -> int:
    """Return the resident bytes of processes together; those that have ended are left out."""
    import psutil

    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            total += int(psutil.Process(pid).memory_info().rss)
    return total


def host_memory() -> tuple[int, int]:
    """Return the total and the available bytes of this machine's memory."""
    import psutil

    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)
