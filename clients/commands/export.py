"""``fedcompress site export`` writes the version of a run that a site holds, without the coordinator."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clients.commands.common import site_path
from clients.runtime.paths import session_dir
from clients.site import SiteConfig
from clients.state.held_runs import read_held_run
from clients.state.last_tasks import LastTask, read_last_tasks
from fedcompress.adapters import Adapter, Template, load_template
from fedcompress.adapters.card import RunFacts
from fedcompress.adapters.constants import CONSTANTS, load_constants
from fedcompress.adapters.full import trains_base_weights
from fedcompress.adapters.full.export import export_run
from fedcompress.config.train_task import TrainTask
from fedcompress.errors import ConfigError, MismatchError, one_of
from fedcompress.types import Layout, state_digest


@dataclass(frozen=True, kw_only=True)
class Options:
    """Holds what can be set from the command line."""

    site: str
    out: str
    run_name: str = ""
    template: str = ""
    as_json: bool = False

    def __post_init__(self) -> None:
        if Path(self.out).exists() and not Path(self.out).is_dir():
            raise ConfigError("--out", self.out, "must be a folder")


def run(options: Options) -> int:
    """Write the folder of the version that the site holds.

    Raises:
        ConfigError: the site holds no such run, or the run's template is needed.
        MismatchError: the template is another run's.
        StateError: what is held is missing or changed.
    """
    site = SiteConfig.load(site_path(options.site))
    task = _find_run(site, options.run_name).parse()
    snapshot = read_held_run(session_dir(site.state_dir), task.run)
    if snapshot is None:
        raise ConfigError("--run", task.run, "holds no version yet: wait until a round has begun")
    template, constants = _build_template(site, task, options.template)
    facts = RunFacts(run=task.run, version=snapshot.version, codec=task.codec)
    out = Path(options.out)
    export_run(out, template, snapshot.state, constants, facts)
    result = {
        "run": task.run,
        "version": snapshot.version,
        "digest": state_digest(snapshot.layout, snapshot.state).hex(),
        "ended": task.ended,
        "folder": str(out.resolve()),
    }
    if options.as_json:
        print(json.dumps(result))
        return 0
    how = f"the run has {task.ended}" if task.ended else "the run goes on"
    print(f"{task.run}: version {snapshot.version}, {how}: {result['folder']}")
    return 0


def _find_run(site: SiteConfig, name: str) -> LastTask:
    """Return the last task of the named run, or of the run that was heard of last."""
    tasks = read_last_tasks(site.state_dir)
    if not tasks:
        raise ConfigError("SITE", site.name, "has taken part in no run yet")
    found = next((last for last in tasks if name in ("", last.run)), None)
    if found is None:
        raise ConfigError("--run", name, one_of([last.run for last in tasks], name))
    return found


def _build_template(site: SiteConfig, task: TrainTask, folder: str) -> tuple[Template, dict[str, Any]]:
    """Return what the run started from, as far as an export needs it, and its constants."""
    if folder:
        template = load_template(Path(folder))
        given = (template.adapter.layout.to_json(), json.dumps(dict(template.adapter.config), sort_keys=True))
        if given != (task.layout, json.dumps(json.loads(task.adapter_config), sort_keys=True)):
            raise MismatchError("template", f"--template: {folder}: run {task.run} was begun with another")
        return template, load_constants((Path(folder) / CONSTANTS).read_bytes()) if template.constants else {}
    if task.constants:
        rule = f"must be the initial adapter of run {task.run}: it has constants that belong into the export"
        raise ConfigError("--template", "''", rule)
    adapter = Adapter(config=json.loads(task.adapter_config), layout=Layout.from_json(task.layout), tensors={})
    if trains_base_weights(adapter.config):  # the base is where this site has it
        adapter = replace(adapter, config={**adapter.config, "base_model_name_or_path": str(site.model.path)})
    return Template(adapter=adapter, objective=task.learns, freeze=task.freeze), {}
