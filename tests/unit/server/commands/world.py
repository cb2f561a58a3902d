"""A state directory that real rounds have filled, in memory, as `fedcompress run` leaves one."""

from __future__ import annotations

import json
from pathlib import Path

from server.runs import save_settings, template_copy_path
from server.settings import Settings, load_settings
from server.state_dir import EVENTS
from tests.unit.server.memory import World


def config_file(world: World, **run: object) -> Path:
    """CONFIG.toml of a world."""
    path = world.folder / "coordinator.toml"
    keys = {"initial-adapter": "initial", "rounds": 4, "codec": "lora-ternary", "downlink-codec": "lora-ternary"}
    keys |= {"require-signatures": False, **run}
    path.write_text(
        '[coordinator]\nstate_dir = "coordinator"\ninsecure = true\n[run]\nseed = 3\nmin-sites = 3\n'
        + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
    )
    return path


def settled(world: World, *, events: bool = True) -> Settings:
    """Keep settings, template and events of a world that has run."""
    file = config_file(world)
    settings = load_settings(file)
    state = settings.coordinator.state_path
    state.mkdir(exist_ok=True)
    save_settings(state, settings.to_dict(file))
    kept = template_copy_path(state, "run")
    if not kept.exists():
        kept.parent.mkdir(parents=True)
        (world.folder / "initial").rename(kept)
    if events:
        at = 1000.0
        lines = [json.dumps({"at": at + i, "run": "run", **event}) for i, event in enumerate(world.events)]
        (state / EVENTS).write_text("".join(f"{line}\n" for line in lines))
    return settings
