"""The supervisor keeps a site's SuperNode and warm worker up until it is told to stop."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clients.network.connection import ADVICE, classify_reason
from clients.runtime.paths import lock_path, make_state_dir
from clients.site import SiteConfig
from fedcompress.runtime.process_group import ProcessGroup
from fedcompress.runtime.supervision import end_noted, put_aside, reason, remember
from fedcompress.storage.locks import holder

Command = Sequence[str | Path]
FIRST_PAUSE = 1.0  # seconds before the first restart; doubles each time
LONGEST_PAUSE = 30.0  # seconds, above which the pause does not grow
STEADY = 300.0  # seconds of life after which the pauses begin anew
NODE = "supernode"  # names of the two processes, in messages and of their logs
WORKER = "worker"


def up_lock(state_dir: Path) -> Path:
    """Return the file that a running ``up`` holds locked."""
    return state_dir / "up.lock"


def up_file(state_dir: Path) -> Path:
    """Return the file in which a running ``up`` notes what it has started, for one that comes after a crash."""
    return state_dir / "up.json"


def worker_command(site_file: Path) -> Command:
    """Return the command of the warm worker, which ends when this process does."""
    return [sys.executable, "-m", "clients.worker.main", "--site", site_file, "--owner", str(os.getpid()), "--quiet"]


@dataclass
class Child:
    """Holds the state of one of the two processes.

    Attributes:
        name: ``supernode`` or ``worker``.
        command: that starts it.
        starts: how often it was started.
        began: when it was started last, seconds of the supervisor's clock.
        pause: seconds to wait when it ends the next time; doubles each time.
        due: when it may be started again, seconds of the same clock.
        running: whether it is.
        log_size: bytes of its log before it was started.
    """

    name: str
    command: Command
    starts: int = 0
    began: float = 0.0
    pause: float = FIRST_PAUSE
    due: float = 0.0
    running: bool = False
    log_size: int = 0  # bytes before it was started


@dataclass
class SiteSupervisor:
    """Starts what does not run, and waits longer each time that it ends at once.

    Attributes:
        site: whose processes they are.
        site_file: its site.toml.
        group: where processes are started.
        node: the SuperNode's command.
        worker: the worker's command.
        advice: what to say when the SuperNode has ended; empty for nothing.
        say: takes one line for people.
        clock: seconds, monotonic.
        cwd: folder that both are started in.
        node_env: variables of the SuperNode, which the worker does not get.
    """

    site: SiteConfig
    site_file: Path
    group: ProcessGroup
    node: Command
    worker: Command
    advice: str
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    cwd: Path = field(default_factory=Path)
    node_env: Mapping[str, str] = field(default_factory=dict)
    _children: list[Child] = field(default_factory=list)
    _foreign: int = 0  # process id of a worker that somebody else has started; 0: none

    def __post_init__(self) -> None:
        self._children = [Child(WORKER, self.worker), Child(NODE, self.node)]

    def tick(self) -> None:
        """Look at both processes once: note what has ended, and start what is due."""
        for child in self._children:
            if child.running:
                self._check(child)
            elif self.clock() >= child.due:
                self._start(child)

    def _start(self, child: Child) -> None:
        """Start a child, unless it is the worker and somebody else's holds the site already."""
        if child.name == WORKER:
            pid = holder(lock_path(self.site.state_dir))
            if pid:
                if pid != self._foreign:
                    self.say(f"worker: pid {pid} runs already: it is used")
                self._foreign = pid
                child.due = self.clock() + FIRST_PAUSE
                return
            self._foreign = 0
        child.log_size = put_aside(self.group.logs / f"{child.name}.log")
        variables = self.node_env if child.name == NODE else {}
        process = self.group.start(child.name, child.command, cwd=self.cwd, env=variables)
        child.running = True
        child.began = self.clock()
        child.starts += 1
        remember(up_file(self.site.state_dir), child.name, process.pid)
        self.say(f"{child.name}: started, pid {process.pid}")

    def _check(self, child: Child) -> None:
        """Say so if a child has ended, and set when it is started again."""
        code = self.group.ended(child.name)
        if code is None:
            return
        child.running = False
        log = self.group.logs / f"{child.name}.log"
        why = reason(log, child.log_size)
        error = f"{child.name}: ended with exit code {code}: {why} (see {log})"
        if self.clock() - child.began > STEADY:
            child.pause = FIRST_PAUSE
        child.due = self.clock() + child.pause
        self.say(f"{error}: started again in {child.pause:.0f} s")
        kind = classify_reason(why)
        advice = self.advice if kind in ("key", "other") else ADVICE[kind]
        if child.name == NODE and advice:
            self.say(f"supernode: {advice}")
        child.pause = min(2 * child.pause, LONGEST_PAUSE)


def end_orphans(state_dir: Path) -> list[str]:
    """End what an ``up`` that was killed has left; return its names.

    It is known by process id and time of birth, so that a process that has got the same id since is not ended.
    """
    return end_noted(up_file(state_dir))


def make_log_dir(site: SiteConfig) -> Path:
    """Return the folder of all logs of a site, which is made if it is not there."""
    return make_state_dir(site.state_dir)
