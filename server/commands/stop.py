"""``fedcompress stop`` ends a run after its round, or at once."""

from __future__ import annotations

import json
from dataclasses import dataclass

from fedcompress.errors import ConfigError
from fedcompress.runtime.supervision import end_process
from server.commands.status import read_run_status
from server.runs import find_run
from server.state_dir import clear_stop, request_stop


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options that can be set on the command line."""

    state: str
    now: bool = False
    timeout: float = 30.0  # seconds
    as_json: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.timeout <= 3600:
            raise ConfigError("--timeout", self.timeout, "must be above 0, at most 3600 seconds")


def run(options: Options) -> int:
    """Ask for the stop, or end the processes; 1 if nobody works on the run.

    Where no round is open there is nothing to wait for: that is a stop at once.

    Raises:
        ConfigError: there is no such state directory.
    """
    folder, name = find_run(options.state)
    status = read_run_status(folder, name)
    pid = status["supervisor_pid"] or status["coordinator_pid"]
    result = {"run": name, "state": status["state"], "pid": pid, "now": False, "killed": False}
    if not pid:
        text = f"{name}: nobody works on it: it is {status['state']}"
    elif options.now or status["state"] in ("starting", "waiting"):
        result |= {"now": True, "killed": not end_process(pid, grace=options.timeout)}
        clear_stop(folder)
        text = f"{name}: ended (pid {pid})" + (f": killed after {options.timeout:g} s" if result["killed"] else "")
    else:
        request_stop(folder)
        text = f"{name}: stops after round {status['round'] or status['rounds_done'] + 1}"
    print(json.dumps(result) if options.as_json else text)
    return 0 if pid else 1
