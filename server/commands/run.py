"""``fedcompress run`` runs a federation from its CONFIG.toml to its end."""

from __future__ import annotations

import filecmp
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcompress.adapters import load_template
from fedcompress.adapters.positions import check_length
from fedcompress.errors import ConfigError, ProcessError
from fedcompress.identity.keys import write_file
from fedcompress.runtime.app_commands import STOPPED
from fedcompress.runtime.flower_app import app_folder, environment
from fedcompress.runtime.process_group import ProcessGroup
from fedcompress.runtime.supervision import end_noted, stop_signals
from fedcompress.storage.locks import hold, holder
from server.commands.common import is_terminal
from server.commands.processes import write_flower_home
from server.commands.reach import check_reach
from server.commands.supervisor import CoordinatorSupervisor, Outcome, format_result
from server.commands.view import RunLiveView, RunPlainView
from server.commands.watch import TOKEN
from server.events import EXPORTED, RunFinished
from server.ledger.reader import LedgerReader, read_events
from server.ledger.recovery import LEDGER, recover_file
from server.runs import save_settings, template_copy_path
from server.settings import CoordinatorConfig, Settings, load_settings, parse_host_and_port
from server.state_dir import COORDINATOR_LOCK, LOGS, PROCESSES, RUN_LOCK, WATCH_TOKEN, clear_stop


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options that can be set on the command line."""

    config: str
    resume: bool = False
    as_json: bool = False


def run(options: Options) -> int:
    """Run a federation to its end, and return 0 if it is finished, or was stopped after a round as it was asked to be.

    Raises:
        ConfigError: the file is wrong, or the run was begun and ``--resume`` is not said.
        LockedError: another ``run`` works on the state directory.
        ProcessError: it has failed, with why.
    """
    file = Path(options.config)
    settings = load_settings(file)
    app_folder()
    state = settings.coordinator.state_path
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError("coordinator.state_dir", state, f"cannot be made: {error.strerror}") from error
    with hold(state / RUN_LOCK, f"state_dir: {state}: `fedcompress run` works on it, pid"):
        notes = _recover_ledger(state)
        if _is_finished(settings):
            return _say_finished(settings, options)
        _check_resume(settings, options)
        notes += check_reach(settings)
        template = _keep_template(settings)
        notes += [f"ended what was left over: {process}" for process in end_noted(state / PROCESSES)]
        _check_listen(settings.coordinator)
        save_settings(state, settings.to_dict(file.resolve()))
        clear_stop(state)
        flat = {**settings.flat, "initial-adapter": str(template)}
        return _supervise(settings, flat, notes, options)


def _recover_ledger(state: Path) -> list[str]:
    """Recover a damaged ledger before anybody reads it; return what was done."""
    note = "" if holder(state / COORDINATOR_LOCK) else recover_file(state)
    return [note] if note else []


def _count_rounds(settings: Settings) -> int | None:
    """Return how many rounds are committed; None if the run was not begun."""
    state, name = settings.coordinator.state_path, settings.run.run
    if not (state / LEDGER).is_file():
        return None
    with LedgerReader(state) as reader:
        return reader.rounds_done(name) if reader.versions(name) else None


def _is_finished(settings: Settings) -> bool:
    done = _count_rounds(settings)
    if done is None or done < settings.run.rounds:
        return False
    events = read_events(settings.coordinator.state_path, settings.run.run)
    return bool(events) and events[-1]["event"] == RunFinished.kind


def _say_finished(settings: Settings, options: Options) -> int:
    event = read_events(settings.coordinator.state_path, settings.run.run)[-1]
    print(f"run {settings.run.run}: is finished: {settings.run.rounds} rounds: {event['adapter']}", file=sys.stderr)
    if options.as_json:
        print(format_result(settings, Outcome(RunFinished.kind, event=event), 0))
    return 0


def _check_resume(settings: Settings, options: Options) -> None:
    done = _count_rounds(settings)
    rounds = settings.run.rounds
    if done is not None and not options.resume:
        rule = f"was begun, {done} of {rounds} rounds are done: go on with --resume, or choose another name"
        raise ConfigError("run.run", settings.run.run, rule)


def _keep_template(settings: Settings) -> Path:
    """Copy the initial adapter into the state directory, or find the copy that a run which was begun goes on with.

    Returns:
        The folder of the copy.

    Raises:
        ConfigError: there is none, or it is not the one that the run was begun with.
    """
    original = Path(settings.run.initial_adapter)
    copy = template_copy_path(settings.coordinator.state_path, settings.run.run)
    is_begun = _count_rounds(settings) is not None
    if is_begun and copy.is_dir():
        if original.is_dir() and original != copy and not _have_same_files(original, copy):
            rule = f"must be as it was when run {settings.run.run} was begun: choose another name for the run"
            raise ConfigError("run.initial-adapter", original, rule)
        return copy
    try:
        template = load_template(original)
    except ConfigError as error:
        raise ConfigError("run.initial-adapter", error.value, error.rule) from error
    check_length(settings.run.max_length, template.positions, "run.max-length")
    part = copy.with_name(f"{copy.name}.part")
    for folder in (part, copy):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, part)
    part.rename(copy)
    return copy


def _have_same_files(left: Path, right: Path) -> bool:
    """Return whether two folders have the same files with the same bytes."""
    names = [sorted(p.name for p in folder.iterdir() if p.is_file()) for folder in (left, right)]
    return names[0] == names[1] and not any(filecmp.cmpfiles(left, right, names[0], shallow=False)[1:])


def _check_listen(config: CoordinatorConfig) -> None:
    """Raise ``ConfigError`` unless our SuperLink can listen where it is to."""
    if config.superlink:
        return
    host, port = parse_host_and_port("coordinator.listen", config.listen)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family[0]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(family[4])
    except OSError as error:
        rule = f"cannot be listened on: {error.strerror}: choose another, or set superlink if one runs there"
        raise ConfigError("coordinator.listen", config.listen, rule) from error


@contextmanager
def _serve_page(settings: Settings) -> Iterator[list[str]]:
    """Serve the page, if the settings have an address for it, and yield what to say of it."""
    address, state = settings.coordinator.watch, settings.coordinator.state_path
    if not address:
        yield []
        return
    from server.watch.web import serve

    host, port = parse_host_and_port("coordinator.watch", address)
    token = os.environ.get(TOKEN, "")
    try:
        server = serve(state, host, port, token, run=settings.run.run)
    except ConfigError as error:
        if error.field == "--token":
            raise ConfigError(TOKEN, error.value, error.rule) from error
        raise ConfigError("coordinator.watch", address, error.rule) from error
    with server:
        new_token = server.token if not token else ""
        if not new_token or is_terminal():
            query = f"?token={new_token}" if new_token else ""
            yield [f"page: {server.url}{query}"]
            return
        note = state / WATCH_TOKEN  # what is said goes to a log
        write_file(note, f"{new_token}\n".encode(), mode=0o600, force=True)
        try:
            yield [f"page: {server.url}: its token is in {note}"]
        finally:
            note.unlink(missing_ok=True)


def _supervise(settings: Settings, flat: dict[str, Any], notes: list[str], options: Options) -> int:
    """Say the notes, keep the run going to its end, and return the exit code."""
    state, name = settings.coordinator.state_path, settings.run.run
    home = write_flower_home(settings, flat)
    view = RunLiveView(state, name) if is_terminal() else RunPlainView(state, name)
    with (
        stop_signals() as stopped,
        ProcessGroup(state / LOGS, environment(home)) as group,
        view,
        _serve_page(settings) as page_notes,
    ):
        for note in [*notes, *page_notes]:
            view.say(note)
        if settings.coordinator.insecure:
            view.say(f"warning: insecure: connections to {settings.coordinator.address} are not encrypted")
        supervisor = CoordinatorSupervisor(
            settings=settings, group=group, on_event=view.on_event, say=view.say, stopped=stopped, show=view.show
        )
        outcome = supervisor.run()
        view.say("stopping all processes")
        supervisor.end(outcome)
    (state / PROCESSES).unlink(missing_ok=True)
    if outcome.kind == "interrupted":
        print(f"stopped: go on with: fedcompress run {options.config} --resume", file=sys.stderr)
        return STOPPED
    if outcome.kind not in EXPORTED:
        raise ProcessError(f"run {name}: {outcome.text} (see {state / LOGS})")
    if options.as_json:
        print(format_result(settings, outcome, supervisor.restarts))
    return 0
