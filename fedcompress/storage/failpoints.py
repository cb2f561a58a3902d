"""Failpoints are named places in the code at which a test can kill the process with SIGKILL.

``FEDCOMPRESS_FAILPOINT=name`` arms one, and ``name:3`` arms it for the third time that it is reached. Where it is
unset, a failpoint costs one look into a dictionary. ``FEDCOMPRESS_FAILPOINT_ONCE`` may name a file: it is created
before the kill, and where it exists nobody is killed any more, so that a process that is started again goes on.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "FEDCOMPRESS_FAILPOINT"
ONCE = "FEDCOMPRESS_FAILPOINT_ONCE"
# What happens just before or after each place.
FAILPOINTS: dict[str, str] = {
    "server.round-begun": "before anybody is asked",
    "server.asked": "after the first site was asked",
    "server.reply": "after a reply has come, before it is looked at",
    "server.admitted": "after an update was spooled",
    "server.merge": "before updates are merged",
    "server.blob": "in the middle of the file of a blob",
    "server.before-commit": "inside of a round's transaction, before its end",
    "server.after-commit": "after a round's transaction",
    "server.before-export": "after the last round",
    "site.received": "after a downlink was decoded, before it is kept",
    "site.settled": "after the outbox was settled",
    "site.trained": "after training, before encoding",
    "site.blob": "in the middle of the file of a blob",
    "site.before-commit": "inside of the transaction of outbox and residual",
    "site.after-commit": "after the transaction of outbox and residual",
    "site.reply": "in the middle of a reply to the relay",
}
_reached: dict[str, int] = {}  # times that the armed failpoint was reached in this process


def failpoint(name: str) -> None:
    """Kill this process if the failpoint is armed, and has now been reached as often as the variable says."""
    armed = os.environ.get(VARIABLE)
    if armed is None:
        return
    armed_name, _, count = armed.partition(":")
    if armed_name != name:
        return
    _reached[name] = _reached.get(name, 0) + 1
    once = os.environ.get(ONCE)
    if _reached[name] != int(count or 1) or (once and os.path.exists(once)):
        return
    if once:
        try:
            with open(once, "x", encoding="utf-8") as stream:
                stream.write(name)
        except FileExistsError:  # another process was faster
            return
    os.kill(os.getpid(), signal.SIGKILL)
