"""The supervisor keeps a run going: a SuperLink, the app submitted to it, and both again when one of them dies."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedcompress.errors import LockedError, NoSpaceError, ProcessError
from fedcompress.runtime.flower_app import app_folder
from fedcompress.runtime.process_group import ProcessGroup, listening, wait_until
from fedcompress.runtime.supervision import end_process, put_aside, reason, remember
from fedcompress.storage.locks import holder
from server.commands.processes import (
    LINK,
    SUBMISSION,
    find_new_keys,
    format_registration,
    has_nodes,
    name_node,
    register_command,
    submit_command,
    superlink_command,
)
from server.events import ENDED, EXPORTED, RoundCommitted, RunFailed
from server.ledger.reader import parse_event, read_events
from server.settings import Settings, parse_host_and_port
from server.state_dir import COORDINATOR_LOCK, EVENTS, PROCESSES, SUPERLINK_DB

POLL = 0.3  # seconds between two looks at processes and events
LEAST = 1 << 20  # bytes that are free on the disk of the state directory, below which it is called full
FAREWELL = 8.0  # seconds that Flower may take to note that a run has ended
RELEASE = 20.0  # seconds that a coordinator which has ended its run may take to be gone


@dataclass(frozen=True)
class Outcome:
    """Tells how an attempt ended.

    Attributes:
        kind: ``finished``, ``stopped``, ``failed``, ``died``, or ``interrupted`` by a signal.
        text: why, for people; empty if the run has ended as it should.
        final: whether no new attempt can help.
        event: the last event of the coordinator, as its JSON object; empty if there was none.
    """

    kind: str
    text: str = ""
    final: bool = False
    event: dict[str, Any] = field(default_factory=dict)


class Interrupted(Exception):
    """A signal has come while something was waited for; this never leaves the module."""


@dataclass
class CoordinatorSupervisor:
    """Starts what does not run, waits longer each time, and gives up after so many attempts without a round.

    Args:
        settings: of the run.
        group: where processes are started.
        on_event: takes the coordinator's events.
        say: takes one line for people.
        stopped: whether a signal has come.
        show: is called all the time, to redraw what is shown.
        clock: seconds, monotonic.
        sleep: waits so many seconds.

    Attributes:
        restarts: attempts besides the first one.
    """

    settings: Settings
    group: ProcessGroup
    on_event: Callable[[dict[str, Any]], None]
    say: Callable[[str], None]
    stopped: Callable[[], bool]
    show: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    restarts: int = 0
    _in_a_row: int = 0  # restarts since the last committed round
    _log_sizes: dict[str, int] = field(default_factory=dict)  # of each process that was started, before its start
    _read: int = 0  # bytes of the events that were read

    @property
    def state(self) -> Path:
        """Return the state directory."""
        return self.settings.coordinator.state_path

    def run(self) -> Outcome:
        """Run attempts until the run has ended, a signal has come, or no attempt can help."""
        limits = self.settings.coordinator
        while True:
            try:
                outcome = self._attempt()
                if outcome.kind in EXPORTED or outcome.final:
                    return outcome
                if self._in_a_row >= limits.restarts:
                    tried = f"given up after {self._in_a_row} restarts without a committed round"
                    return Outcome(RunFailed.kind, f"{outcome.text}: {tried}")
                pause = min(limits.first_pause * 2**self._in_a_row, limits.longest_pause)
                self._in_a_row += 1
                self.restarts += 1
                self.say(f"{outcome.text}: again in {pause:g} s ({self._in_a_row} of {limits.restarts})")
                self._wait(pause)
            except Interrupted:
                return Outcome("interrupted")

    def end(self, outcome: Outcome) -> None:
        """Let Flower take note of a run that has ended, or end the coordinator of one that has not."""
        until = self.clock() + FAREWELL
        while outcome.kind in EXPORTED and self._ended(SUBMISSION) is None and self.clock() < until:
            self.sleep(POLL)
        pid = holder(self.state / COORDINATOR_LOCK)
        if pid:
            end_process(pid, grace=FAREWELL)

    def _attempt(self) -> Outcome:
        """Submit the app once, and follow it to its end."""
        try:
            pid = self._adopt_coordinator()
            if not pid:
                self._start_superlink()
                self._register_nodes()
                self._end(SUBMISSION)
                self._release()
                self._submit()
            return self._follow(pid)
        except (ProcessError, NoSpaceError, OSError) as error:
            return Outcome("died", str(error))

    def _wait(self, seconds: float) -> None:
        until = self.clock() + seconds
        while (left := until - self.clock()) > 0:
            self._check_stop()
            self.sleep(min(left, POLL))

    def _check_stop(self) -> None:
        self.show()
        if self.stopped():
            raise Interrupted

    def _adopt_coordinator(self) -> int:
        """Return the process id of a coordinator of this run that another's SuperLink keeps up already; 0: none.

        Raises:
            LockedError: it works on another run.
        """
        pid = holder(self.state / COORDINATOR_LOCK)
        if not pid or not self.settings.coordinator.superlink or self.restarts:
            return 0
        events = read_events(self.state)
        if not events or events[-1].get("run") != self.settings.run.run:
            raise LockedError(f"state_dir: {self.state}: is held by a coordinator of another run, pid {pid}")
        self._read = (self.state / EVENTS).stat().st_size
        self.say(f"coordinator: pid {pid} runs already: it is watched")
        return pid

    def _start_superlink(self) -> None:
        """Start our own SuperLink, if there is none, and wait for it or the one that we were given.

        Raises:
            ProcessError: it does not come up.
        """
        config = self.settings.coordinator
        host, port = parse_host_and_port("coordinator.superlink", config.address)
        if not config.superlink and self._ended(LINK) is not None:
            self._end(LINK)
            self._start(LINK, superlink_command(config))

        def check_alive() -> None:
            self._check_stop()
            if not config.superlink and self._ended(LINK) is not None:
                raise ProcessError(self._why(LINK))

        wait_until(
            lambda: listening(port, host),
            timeout=config.start_timeout,
            what=f"SuperLink {config.address}",
            alive=check_alive,
        )

    def _register_nodes(self) -> None:
        """Register the keys that are new in ``node_keys``; say what to do where no SuperNode could join.

        Raises:
            ProcessError: a key was not taken.
        """
        config = self.settings.coordinator
        for key in find_new_keys(config) if config.supernode_keys else ():
            self._register(key)
            self.say(f"{key}: its SuperNode is let in")
        if config.supernode_keys and not has_nodes(self.state / SUPERLINK_DB):
            self.say(
                "warning: no SuperNode's key is registered, so no site can join: while this runs, for each site: "
                f"{format_registration(config)} (or node_keys = a folder of them; "
                "supernode_keys = false lets in whoever reaches the port)"
            )

    def _register(self, key: Path) -> None:
        name = f"register-{name_node(key)}"
        limit = self.settings.coordinator.start_timeout
        self.group.start(name, register_command(key.absolute()), cwd=self.state)
        wait_until(lambda: self.group.finished(name), timeout=limit, what=name, alive=self._check_stop)

    def _start(self, name: str, command: list[str | Path]) -> None:
        self._log_sizes[name] = put_aside(self.group.logs / f"{name}.log")
        process = self.group.start(name, command, cwd=app_folder())
        remember(self.state / PROCESSES, name, process.pid)
        self.say(f"{name}: started, pid {process.pid}")

    def _end(self, name: str) -> None:
        """End what is left of a process and of what it has started."""
        self.group.end(name)
        self._log_sizes.pop(name, None)

    def _ended(self, name: str) -> int | None:
        """Return the exit code of a process; None while it runs, -1 if it was never started."""
        return self.group.ended(name) if name in self._log_sizes else -1

    def _why(self, name: str) -> str:
        log = self.group.logs / f"{name}.log"
        return f"{name}: ended with exit code {self._ended(name)}: {reason(log, self._log_sizes[name])} (see {log})"

    def _release(self) -> None:
        """Wait until no coordinator works on the state directory; end one that stays.

        Raises:
            ProcessError: it cannot be ended.
        """
        lock = self.state / COORDINATOR_LOCK
        until = self.clock() + RELEASE
        while pid := holder(lock):
            self._check_stop()
            if self.clock() > until and not end_process(pid, grace=RELEASE):
                self.say(f"coordinator: pid {pid} was killed: it did not end")
            self.sleep(POLL)

    def _submit(self) -> None:
        path = self.state / EVENTS
        self._read = path.stat().st_size if path.is_file() else 0
        self._start(SUBMISSION, submit_command(self.settings))

    def _follow(self, pid: int) -> Outcome:
        """Pass events on until the run ends or somebody who is needed for it does."""
        coordinator = pid  # process id that was seen last
        deadline = self.clock() + self.settings.coordinator.start_timeout
        while True:
            self._check_stop()
            # Before the events are read: what a process wrote before it ended counts.
            death = self._find_death(coordinator, deadline)
            for event in self._read_events():
                self.on_event(event)
                if event["event"] == RoundCommitted.kind:
                    self._in_a_row = 0
                if event["event"] in ENDED:
                    return Outcome(event["event"], event.get("message", ""), bool(event.get("final")), event)
            if death:
                return Outcome("died", f"{death}{_describe_full_disk(self.state)}")
            coordinator = holder(self.state / COORDINATOR_LOCK) or coordinator
            self.sleep(POLL)

    def _find_death(self, coordinator: int, deadline: float) -> str:
        """Tell who has died, of those without whom the run does not go on; empty: nobody."""
        if not self.settings.coordinator.superlink and self._ended(LINK) is not None:
            return self._why(LINK)
        if holder(self.state / COORDINATOR_LOCK):
            return ""
        if coordinator:
            return f"coordinator: pid {coordinator} ended before the run did"
        if self._ended(SUBMISSION) is not None:
            return self._why(SUBMISSION)
        if self.clock() > deadline:
            return f"coordinator: not there in {self.settings.coordinator.start_timeout:g} s"
        return ""

    def _read_events(self) -> Iterator[dict[str, Any]]:
        """Yield the events of this run that are new."""
        path = self.state / EVENTS
        if not path.is_file():
            return
        with path.open("rb") as stream:
            stream.seek(self._read)
            data = stream.read()
        end = data.rfind(b"\n") + 1
        self._read += end
        for line in data[:end].splitlines():
            event = parse_event(line)
            if event and event.get("run") == self.settings.run.run:
                yield event


def _describe_full_disk(state: Path) -> str:
    """Return words for a disk that is full, else none: who dies of that may not have had room to say so."""
    return f": disk: {state}: no space left: free some" if shutil.disk_usage(state).free < LEAST else ""


def format_result(settings: Settings, outcome: Outcome, restarts: int) -> str:
    """Format what ``run --json`` prints.

    Args:
        settings: of the run.
        outcome: how the run has ended.
        restarts: attempts besides the first one.

    Returns:
        A JSON object.
    """
    return json.dumps(
        {
            "run": settings.run.run,
            "state": outcome.kind,
            "adapter": outcome.event.get("adapter"),
            "up": outcome.event.get("up", {}),
            "down": outcome.event.get("down", {}),
            "state_dir": settings.coordinator.state_dir,
            "restarts": restarts,
        }
    )
