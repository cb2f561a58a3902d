"""A transport in memory: real coordinator, ledger and site sessions; only Flower and training are stand-ins."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedcompress.adapters import Adapter, Template, load_adapter, save_template, seeded_init
from fedcompress.config.objective import Classification
from fedcompress.config.run_config import RunConfig
from fedcompress.config.train_task import TrainTask
from fedcompress.errors import IdentityError, MismatchError
from server.coordinator import Coordinator
from server.transport.base import Incoming
from tests.support import lora_layout
from tests.unit.clients.site_support import FakeSite

CONFIG = {"peft_type": "LORA", "r": 4}


class Killed(BaseException):
    """The coordinator's process is gone."""


class MemoryTransport:
    """Delivers at once. ``fate(event, node, round)`` may raise ``Killed`` or return False to lose a message."""

    def __init__(self, sites: dict[int, FakeSite], fate: Callable[[str, int, int], bool] | None = None) -> None:
        self.sites = sites
        self.fate = fate or (lambda event, node, round_: True)
        self.inbox: list[Incoming] = []
        self.sent: list[tuple[int, TrainTask, bytes, str]] = []
        self.carried = {"up": 0, "down": 0}
        self.now = 0.0

    def clock(self) -> float:
        """Seconds; they pass only while the coordinator waits."""
        return self.now

    def nodes(self) -> list[int]:
        return list(self.sites)

    def send(self, node: int, task: TrainTask, payload: bytes, signature: str = "") -> int:
        self.carried["down"] += len(payload)
        self.sent.append((node, task, payload, signature))
        self._answer(node, task, payload, signature)
        return len(task.to_json())

    def _answer(self, node: int, task: TrainTask, payload: bytes, signature: str = "") -> None:
        if not self.fate("send", node, task.round):
            return
        site = self.sites[node]
        try:
            status, reply = {"status": "ok", "site": site.name}, site.answer(task, payload, signature)
        except (MismatchError, IdentityError) as error:
            status = {"status": "failed", "site": site.name, "code": error.code, "message": str(error)}
            reply = b""
        if self.fate("reply", node, task.round):
            self.carried["up"] += len(reply)
            self.inbox.append(Incoming(node, status, reply))

    def receive(self, timeout: float) -> Iterable[Incoming]:
        if not self.inbox:
            self.now += timeout
        while self.inbox:
            reply = self.inbox.pop()  # the last comes first: order of arrival must not matter
            self.fate("receive", reply.node, 0)
            yield reply

    def forget(self, nodes: Iterable[int]) -> None:
        gone = set(nodes)
        self.inbox = [reply for reply in self.inbox if reply.node not in gone]


class SlowTransport(MemoryTransport):
    """A reply comes ``delay(site, round)`` seconds after its task; a node does one task at a time."""

    def __init__(self, sites: dict[int, FakeSite], delay: Callable[[str, int], float]) -> None:
        super().__init__(sites)
        self._delay = delay
        self._due: list[tuple[float, Incoming]] = []
        self._free: dict[int, float] = {}

    def _answer(self, node: int, task: TrainTask, payload: bytes, signature: str = "") -> None:
        super()._answer(node, task, payload, signature)
        starts = max(self.now, self._free.get(node, 0.0))
        self._free[node] = starts + self._delay(self.sites[node].name, task.round)
        self._due += [(self._free[node], reply) for reply in self.inbox]
        self.inbox.clear()

    def receive(self, timeout: float) -> Iterable[Incoming]:
        first = min((at for at, _ in self._due), default=math.inf)
        self.now = min(self.now + timeout, max(first, self.now))
        ready = [reply for at, reply in self._due if at <= self.now]
        self._due = [(at, reply) for at, reply in self._due if at > self.now]
        return ready

    def forget(self, nodes: Iterable[int]) -> None:
        gone = set(nodes)
        self._due = [(at, replace(reply, late=True) if reply.node in gone else reply) for at, reply in self._due]


def initial_adapter(folder: Path) -> Adapter:
    """The start of a run in a folder; made if it is not there."""
    initial = folder / "initial"
    if not initial.exists():
        start = Adapter(config=CONFIG, layout=lora_layout(), tensors=seeded_init(lora_layout(), 3))
        save_template(initial, Template(adapter=start, objective=Classification(labels=("a", "b"))), {})
    return load_adapter(initial)


def run_config(folder: Path, sites: int, **changes: Any) -> RunConfig:
    """A short run of so many sites."""
    fields: dict[str, Any] = {
        "run": "run",
        "state_dir": str(folder / "coordinator"),
        "initial_adapter": str(folder / "initial"),
        "rounds": 4,
        "min_sites": sites,
        "quorum": 1,
        "min_cohort": 1,  # few sites, and none of them real
        "seed": 3,
        "codec": "lora-ternary",  # the default codes have nothing left for so few entries but zeros
        "downlink_codec": "lora-ternary",
        "require_signatures": False,
    }
    return RunConfig(**{**fields, **changes})


class World:
    """Folders of a coordinator and its sites."""

    def __init__(self, folder: Path, names: tuple[str, ...] = ("north", "south", "west")) -> None:
        self.folder = folder
        adapter = initial_adapter(folder)
        self.layout = adapter.layout
        self.sites = {(1 << 63) + i: FakeSite(folder / "sites", n) for i, n in enumerate(names)}
        self.events: list[dict[str, Any]] = []

    def config(self, **changes: Any) -> RunConfig:
        return run_config(self.folder, len(self.sites), **changes)

    def run(self, fate: Callable[[str, int, int], bool] | None = None, **changes: Any) -> MemoryTransport:
        """One process of the coordinator, until it ends or is killed."""
        return self.over(MemoryTransport(self.sites, fate), **changes)

    def over(self, transport: MemoryTransport, **changes: Any) -> MemoryTransport:
        """The same over any transport."""
        coordinator = Coordinator(self.config(**changes), transport, self.events.append, transport.clock)
        try:
            coordinator.run()
        finally:
            coordinator.ledger.close()
        return transport

    def result(self) -> bytes:
        return (self.folder / "coordinator" / "adapter" / "adapter_model.safetensors").read_bytes()
