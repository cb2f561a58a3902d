"""Processes are found with their descendants, and told from zombies."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process still runs; a zombie does not, and its parent may never reap it."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def find_processes(is_member: Callable[[psutil.Process], bool]) -> dict[int, psutil.Process]:
    """Find the living processes that are members of something, and all that have descended from them.

    Args:
        is_member: tells whether a process is a member; one for which it raises an error of psutil or of the system,
            because it has just ended or belongs to somebody else, is none.

    Returns:
        Processes by id.
    """
    import psutil

    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if is_member(process):
                found |= {p.pid: p for p in [process, *process.children(recursive=True)]}
    return {pid: process for pid, process in found.items() if is_alive(process)}
