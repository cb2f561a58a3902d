"""The guard runs a command, and ends it with all that it has started when the process that asked for it is gone.

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

POLL = 0.3  # seconds between two looks at the command and its owner
GRACE = 5.0  # seconds that the command has to end after SIGTERM


def main(argv: list[str]) -> int:
    """Run the command to its end; return its exit code, or 128 plus the number of the signal that ended it."""
    owner = int(argv[0])
    command = argv[1:]
    signals: list[int] = []  # that have come
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: signals.append(number))
    child = subprocess.Popen(command, process_group=0)
    while child.poll() is None:
        if signals or os.getppid() != owner:
            _end(child)
            return 0
        time.sleep(POLL)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _end(child: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to the command's process group, and SIGKILL if that does not end it."""
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
