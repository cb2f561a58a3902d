"""Federations of the settings, done once and kept as JSON."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from benchmarks.federation import Run, federate
from benchmarks.settings.base import Setting
from benchmarks.settings.clinc import clinc
from benchmarks.settings.gsm8k import gsm8k
from benchmarks.settings.shakespeare import shakespeare

MAKERS: dict[str, Callable[[], Setting]] = {
    "M": lambda: clinc(eval_rows=4500),
    "L": shakespeare,
    "S": lambda: gsm8k(steps=12),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One federation."""

    setting: str
    rounds: int
    up: str | tuple[str, ...]
    down: str | tuple[str, ...]
    seed: int = 0
    feedback: float = 1.0
    store: str = "none"

    def key(self) -> str:
        """Names the cell; what is as usual is left out."""
        named = asdict(self)
        if self.store == "none":
            del named["store"]
        return json.dumps(named, sort_keys=True)


@cache
def setting_of(name: str) -> Setting:
    """A setting, loaded once."""
    return MAKERS[name]()


def run(cell: Cell, out: Path) -> Run:
    """From ``out`` if it was done before; evaluates at the start and at the end."""
    text = cell.key()
    path = out / "runs" / f"{cell.setting}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if not path.is_file():
        print(f"  {text}", file=sys.stderr)
        done = federate(
            setting_of(cell.setting),
            rounds=cell.rounds,
            up=cell.up,
            down=cell.down,
            seed=cell.seed,
            feedback=cell.feedback,
            store=cell.store,
            every=cell.rounds,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"cell": asdict(cell), "run": asdict(done)}, indent=1) + "\n")
    return Run(**json.loads(path.read_text())["run"])
