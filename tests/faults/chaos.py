"""Kills processes of a run at random failpoints, starts them again, and counts."""

from __future__ import annotations

import os
import random
import selectors
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedcompress.storage.failpoints import FAILPOINTS, VARIABLE
from tests.faults.processes import NAMES
from tests.unit.server.memory import initial_adapter

OFTEN = {"server.asked": 9, "server.reply": 9, "server.admitted": 9, "server.blob": 9, "site.blob": 9}  # a life

LAST = "server.before-export"  # is reached once in a run: whoever waits for it is not killed before


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Chaos:
    """A run of ``rounds`` rounds in a folder, with at most ``kills`` kills of the coordinator and as many of sites."""

    folder: Path
    rounds: int
    kills: int
    seed: int = 0
    variables: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # of processes, by role
    done: Counter[str] = field(default_factory=Counter)

    def run(self) -> bytes:
        """The adapter at the end.

        Raises:
            AssertionError: a process ended otherwise than by a kill or well.
        """
        draw, port = random.Random(self.seed), free_port()
        initial_adapter(self.folder)
        roles = {"coordinator": ["coordinator", str(self.folder), str(port), str(self.rounds)]}
        for index, name in enumerate(NAMES):
            roles[name] = ["site", str(self.folder), str(port), str((1 << 63) + index), name]
        living = {role: self._start(words, draw) for role, words in roles.items()}
        try:
            while "coordinator" in living:
                for role in self._ended(living):
                    process, armed = living.pop(role)
                    if process.returncode == -signal.SIGKILL:
                        self.done[armed.partition(":")[0]] += 1
                        living[role] = self._start(roles[role], draw)
                    else:
                        assert process.returncode == 0, f"{role} ended with {process.returncode}"
        finally:
            for process, _ in living.values():
                process.kill()
                process.wait()
        return (self.folder / "coordinator" / "adapter" / "adapter_model.safetensors").read_bytes()

    def killed(self, side: str) -> int:
        """Kills at ``server.`` or ``site.``."""
        return sum(count for place, count in self.done.items() if place.startswith(side))

    def _start(self, words: list[str], draw: random.Random) -> tuple[subprocess.Popen[bytes], str]:
        armed, environment = "", dict(os.environ)
        environment |= self.variables.get("coordinator" if words[0] == "coordinator" else words[-1], {})
        environment.pop(VARIABLE, None)
        side = "server." if words[0] == "coordinator" else "site."
        if self.killed(side) < self.kills:
            place = draw.choice([name for name in FAILPOINTS if name.startswith(side) and name != LAST])
            armed = f"{place}:{draw.randint(1, OFTEN.get(place, 3))}"
        elif self.kills and side == "server." and not self.done[LAST]:
            armed = LAST
        if armed:
            environment[VARIABLE] = armed
        command = [sys.executable, "-m", "tests.faults.processes", *words]
        return subprocess.Popen(command, env=environment), armed

    def _ended(self, living: dict[str, tuple[subprocess.Popen[bytes], str]]) -> list[str]:
        """Waits until at least one has."""
        with selectors.DefaultSelector() as selector:
            handles = {role: os.pidfd_open(process.pid) for role, (process, _) in living.items()}
            try:
                for role, handle in handles.items():
                    selector.register(handle, selectors.EVENT_READ, role)
                found = [str(key.data) for key, _ in selector.select(timeout=120)]
            finally:
                for handle in handles.values():
                    os.close(handle)
        assert found, f"nothing has happened for two minutes: {self.done}"
        for role in found:
            living[role][0].wait()
        return found
