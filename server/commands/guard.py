"""Runs a command, and ends it with all that it has started when the process that asked for it is gone.

python -m server.commands.guard OWNER_PID COMMAND...

A SuperLink does not watch who has started it. The guard must lead a process group of its own.
"""

from __future__ import annotations

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
    child = subprocess.Popen(command)
    while child.poll() is None:
        if asked or os.getppid() != owner:
            return _end(child)
        time.sleep(POLL)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _end(child: subprocess.Popen[bytes]) -> int:
    """SIGTERM to the process group, then SIGKILL, which ends this process too."""
    os.killpg(0, signal.SIGTERM)  # this process only notes it
    try:
        child.wait(GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(0, signal.SIGKILL)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
