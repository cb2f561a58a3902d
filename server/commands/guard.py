"""Runs a command, and ends it with all that it has started when the process that asked for it is gone.

python -m server.commands.guard OWNER_PID COMMAND...

A SuperLink does not watch who has started it. OWNER_PID must be the parent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

POLL, GRACE = 0.3, 5.0  # seconds


def main(argv: list[str]) -> int:
    """Run the command to its end; its exit code, or 128 and the number of the signal that ended it."""
    owner, command = int(argv[0]), argv[1:]
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: asked.append(number))
    child = subprocess.Popen(command, process_group=0)
    while child.poll() is None:
        if asked or os.getppid() != owner:
            _end(child)
            return 0
        time.sleep(POLL)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _end(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the command's process group, then SIGKILL."""
    with contextlib.suppress(ProcessLookupError):  # nobody is left
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(child.pid, number)
            deadline = time.monotonic() + GRACE
            while time.monotonic() < deadline:
                child.poll()  # reaps it
                os.killpg(child.pid, 0)
                time.sleep(POLL)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
