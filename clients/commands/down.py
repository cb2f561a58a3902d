"""``fedcompress site down`` ends what ``up`` has started."""

from __future__ import annotations

import json
from dataclasses import dataclass

from clients.commands.common import site_path
from clients.commands.supervisor import end_orphans, up_lock
from clients.site import SiteConfig
from fedcompress.errors import ConfigError
from fedcompress.runtime.supervision import end_process
from fedcompress.storage.locks import holder


@dataclass(frozen=True, kw_only=True)
class Options:
    """Holds what can be set from the command line."""

    site: str
    timeout: float = 30.0  # seconds that ``up`` has to end before it is killed
    as_json: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.timeout <= 3600:
            raise ConfigError("--timeout", self.timeout, "must be above 0, at most 3600 seconds")


def run(options: Options) -> int:
    """End the site's ``up``, and what is left of one that was killed; return 1 if there is nothing to end.

    Raises:
        ConfigError: site.toml is wrong.
    """
    site = SiteConfig.load(site_path(options.site))
    ended: list[str] = []
    is_killed = False
    pid = holder(up_lock(site.state_dir))
    if pid:
        is_killed = not end_process(pid, grace=options.timeout)
        ended.append(f"up (pid {pid})")
    ended += end_orphans(site.state_dir)
    if options.as_json:
        print(json.dumps({"site": site.name, "ended": ended, "killed": is_killed}))
    elif ended:
        suffix = f": killed after {options.timeout:.0f} s" if is_killed else ""
        print(f"{site.name}: ended {', '.join(ended)}{suffix}")
    else:
        print(f"{site.name}: is not up")
    return 0 if ended else 1
