"""Real updates: what sites of the settings send in some rounds of an uncompressed federation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.settings.base import Setting
from benchmarks.settings.clinc import clinc
from benchmarks.settings.gsm8k import gsm8k
from benchmarks.settings.shakespeare import shakespeare
from fedcompress.types import Layout, Tensors, subtract


@dataclass(frozen=True)
class Source:
    """A setting, the rounds kept, and how many sites take part (0: all)."""

    make: Callable[[], Setting]
    rounds: tuple[int, ...]
    sites: int = 0


SOURCES = {"M": Source(clinc, (1, 3, 6)), "L": Source(shakespeare, (1, 3, 6)), "S": Source(gsm8k, (1, 2, 3), 1)}


@dataclass(frozen=True)
class Delta:
    """The first site's update of a round."""

    name: str
    layout: Layout
    tensors: Tensors


def deltas(out: Path, names: str = "MLS") -> list[Delta]:
    """Made once, then read from ``out``."""
    found = []
    for name in names:
        source, folder = SOURCES[name], out / "deltas" / name
        if not (folder / "layout.json").is_file():
            _make(source, folder)
        layout = Layout.from_json((folder / "layout.json").read_text())
        for round_ in source.rounds:
            with np.load(folder / f"{round_}.npz") as stored:
                tensors = {t.name: stored[t.name] for t in layout.tensors}
            found.append(Delta(f"{name}, round {round_}", layout, tensors))
    return found


def _make(source: Source, folder: Path) -> None:
    setting = source.make()
    folder.mkdir(parents=True, exist_ok=True)
    state = setting.initial(0)
    sites = range(source.sites or len(setting.examples))
    for round_ in range(1, max(source.rounds) + 1):
        updates = [subtract(setting.train(state, site, round_, 0), state) for site in sites]
        if round_ in source.rounds:
            np.savez(folder / f"{round_}.npz", **updates[0])
        state = {n: (v + np.mean([u[n] for u in updates], axis=0)).astype(np.float32) for n, v in state.items()}
    (folder / "layout.json").write_text(setting.layout.to_json())
