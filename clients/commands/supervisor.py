"""A site's SuperNode and warm worker, kept up until they are told to stop."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clients.site import SiteConfig
from clients.worker.lease import holder
from clients.worker.paths import lock_path, make_state_dir
from fedcompress.demo.processes import ProcessGroup

Command = Sequence[str | Path]
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between restarts
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
MAX_TAIL = 1 << 16  # bytes
STEADY = 300.0  # seconds of life after which the pauses begin anew
KEY_PAUSE = 60  # seconds for which a SuperLink takes a key of a crashed SuperNode for one in use
MAX_LOG = 8 << 20  # bytes, beyond which a log is put aside at the next start
NODE, WORKER = "supernode", "worker"


def up_lock(state_dir: Path) -> Path:
    """Held by a running ``up``."""
    return state_dir / "up.lock"


def up_facts(state_dir: Path) -> Path:
    """What a running ``up`` has started, for one that comes after a crash."""
    return state_dir / "up.json"


def worker_command(site_file: Path) -> Command:
    """The warm worker, which ends when this process does."""
    return [sys.executable, "-m", "clients.worker.main", "--site", site_file, "--owner", str(os.getpid()), "--quiet"]


@dataclass
class Child:
    """One of the two processes, and when it may be started again."""

    name: str
    command: Command
    starts: int = 0
    began: float = 0.0
    pause: float = FIRST_PAUSE
    due: float = 0.0
    running: bool = False
    log_size: int = 0  # bytes before it was started


@dataclass
class Supervisor:
    """Starts what does not run, waits longer each time it ends at once.

    Args:
        site: whose processes they are.
        site_file: its site.toml.
        group: where processes are started.
        node: the SuperNode's command.
        worker: the worker's command.
        authenticated: whether the SuperNode has a key.
        say: takes one line for people.
        clock: seconds, monotonic.
    """

    site: SiteConfig
    site_file: Path
    group: ProcessGroup
    node: Command
    worker: Command
    authenticated: bool
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    cwd: Path = field(default_factory=Path)
    _children: list[Child] = field(default_factory=list)
    _foreign: int = 0

    def __post_init__(self) -> None:
        self._children = [Child(WORKER, self.worker), Child(NODE, self.node)]

    def tick(self) -> None:
        """Look at both once."""
        for child in self._children:
            if child.running:
                self._check(child)
            elif self.clock() >= child.due:
                self._start(child)

    def _start(self, child: Child) -> None:
        if child.name == WORKER:
            pid = holder(lock_path(self.site.state_dir))
            if pid:
                if pid != self._foreign:
                    self.say(f"worker: pid {pid} runs already: it is used")
                self._foreign, child.due = pid, self.clock() + FIRST_PAUSE
                return
            self._foreign = 0
        child.log_size = _put_aside(self.group.logs / f"{child.name}.log")
        process = self.group.start(child.name, child.command, cwd=self.cwd)
        child.running, child.began = True, self.clock()
        child.starts += 1
        self._remember(child.name, process.pid)
        self.say(f"{child.name}: started, pid {process.pid}")

    def _check(self, child: Child) -> None:
        code = self.group.ended(child.name)
        if code is not None:
            child.running = False
            log = self.group.logs / f"{child.name}.log"
            error = f"{child.name}: ended with exit code {code}: {reason(log, child.log_size)} (see {log})"
            if self.clock() - child.began > STEADY:
                child.pause = FIRST_PAUSE
            child.due = self.clock() + child.pause
            self.say(f"{error}: started again in {child.pause:.0f} s")
            if child.name == NODE and self.authenticated:
                self.say(
                    f"supernode: the SuperLink may refuse its key for {KEY_PAUSE} s after a crash: it is tried again"
                )
            child.pause = min(2 * child.pause, LONGEST_PAUSE)

    def _remember(self, name: str, pid: int) -> None:
        path = up_facts(self.site.state_dir)
        facts = read_facts(path) | {"by": os.getpid(), name: {"pid": pid, "created": _created(pid)}}
        path.write_text(json.dumps(facts))


def reason(log: Path, start: int) -> str:
    """Why a process ended, from its log after ``start`` bytes, without colours.

    Flower writes ``Exit Code: N``, then why, and then that its servers were stopped.
    """
    with log.open("rb") as stream:
        stream.seek(max(start, log.stat().st_size - MAX_TAIL))
        lines = COLOUR.sub("", stream.read().decode("utf-8", "replace")).splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    for number, line in enumerate(lines[:-1]):
        if "Exit Code:" in line:
            return lines[number + 1]
    wrong = [line for line in lines if line.startswith(("ERROR", "error:"))]
    return (wrong or lines or ["no output"])[-1]


def _put_aside(log: Path) -> int:
    """Start a new log if it is large; returns the bytes of the one that goes on."""
    size = log.stat().st_size if log.is_file() else 0
    if size > MAX_LOG:
        log.replace(log.with_name(f"{log.name}.1"))
        return 0
    return size


def read_facts(path: Path) -> dict[str, Any]:
    """What a running ``up`` wrote; nothing, if the file is absent or torn."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _created(pid: int) -> float:
    import psutil

    with contextlib.suppress(psutil.Error):
        return float(psutil.Process(pid).create_time())
    return 0.0


def end_orphans(state_dir: Path) -> list[str]:
    """End what an ``up`` that was killed has left, known by process id and time of birth; say what it was."""
    import psutil

    ended = []
    for name, fact in read_facts(up_facts(state_dir)).items():
        with contextlib.suppress(psutil.Error, KeyError, TypeError):
            process = psutil.Process(int(fact["pid"]))
            if not fact["created"] or abs(process.create_time() - fact["created"]) > 0.01:
                continue
            members = [process, *process.children(recursive=True)]
            for member in members:
                with contextlib.suppress(psutil.Error):
                    member.terminate()
            _, left = psutil.wait_procs(members, timeout=10)
            for member in left:
                member.kill()
            ended.append(f"{name} (pid {process.pid})")
    up_facts(state_dir).unlink(missing_ok=True)
    return ended


def end_process(pid: int, *, grace: float) -> bool:
    """SIGTERM, then SIGKILL after ``grace`` seconds; whether the first was enough."""
    import psutil

    try:
        process = psutil.Process(pid)
        process.terminate()
        process.wait(timeout=grace)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        process.kill()
        return False
    return True


def logs_of(site: SiteConfig) -> Path:
    """Folder of all logs of a site, made if it is not there."""
    return make_state_dir(site.state_dir)
