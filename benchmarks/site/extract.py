"""Memory that extraction and encoding take, and their seconds, where all weights of SmolLM2-135M are trained."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import row
from benchmarks.site.place import Place
from fedcompress.adapters import load_template
from fedcompress.config.train_task import TrainTask

CODECS = ("topk(density=0.01)|ternary", "int8", "lora-transform")
# memory after training does not depend on them
STEPS = 1
BATCH = 1
LENGTH = 32
INTERVAL = 0.05
TARGET = 0.5


class Watch:
    """Proportional set sizes (PSS) of worker and ranks, from the beginning of extraction on."""

    def __init__(self) -> None:
        self.base = self.peak = 0
        self.began = 0.0
        self.done = threading.Event()
        self._thread: threading.Thread | None = None

    def note(self, progress: Any) -> None:
        """A note of the worker."""
        if progress.phase == "extract":
            self.began = time.perf_counter()
            self.base = pss()
            self.peak = self.base
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self.done.wait(INTERVAL):
            self.peak = max(self.peak, pss())

    def stop(self) -> float:
        """Seconds since extraction began."""
        seconds = time.perf_counter() - self.began
        self.done.set()
        assert self._thread is not None
        self._thread.join()
        return seconds


def pss() -> int:
    """Sum the proportional memory of all processes of the site, bytes."""
    total = 0
    for process in psutil.Process(os.getpid()).children(recursive=True):
        try:
            if "clients." in " ".join(process.cmdline()):
                total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def small(place: Place, round_: int, codec: str) -> TrainTask:
    """A round of one short step."""
    return replace(place.task(round_, STEPS, codec), batch_size=BATCH, max_length=LENGTH, lr=1e-5)


def rows(out: Path) -> list[dict[str, Any]]:
    """The second round of each codec, which has a state and a residual; the first loads the model."""
    place = Place(out / "extract", adapter="full", dtype="float32")
    size = 4 * load_template(place.template).adapter.layout.numel
    found = []
    try:
        for number, codec in enumerate(CODECS):
            watch = Watch()
            if not number:
                place.train(small(place, 1, codec))
            reply, _ = place.train(small(place, 2 + number, codec), watch.note)
            seconds, extra = watch.stop(), watch.peak - watch.base
            ratio = extra / size
            note = (
                f"{extra / 2**20:.0f} MiB above training's end, model {size / 2**20:.0f} MiB; "
                f"update {len(reply) / 2**20:.2f} MiB, residual and outbox on the disk"
            )
            name = f"extract and encode, {codec}"
            found.append(row(name, ratio, "x model", target=f"<= {TARGET}", **{"pass": ratio <= TARGET}, note=note))
            found.append(row(f"{name}: time", seconds, "s"))
    finally:
        place.stop()
    return found
