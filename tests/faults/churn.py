"""Sites that join in every round, do not answer, or are slow; seconds are those of the coordinator's clock."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedcompress.config.train_task import TrainTask
from server.transport.base import Incoming
from tests.faults.simulated import SimulatedSites
from tests.unit.server.memory import SlowTransport

SLOWER = 5


@dataclass(frozen=True, kw_only=True)
class Churn:
    """How sites come and go.

    Attributes:
        first: sites that are there at the start; the others join in the order of their names.
        joins: that join in each round, after it has begun.
        pace: seconds that a site takes for a task, at most; it takes half of that at least.
        stragglers: of how many one is slower by ``SLOWER``.
        drop: share of the tasks that are never answered: half of them are lost on the way to a site, and half of
            them on the way back.
    """

    first: int
    joins: int
    pace: float
    stragglers: int
    drop: float = 0.5

    def is_slow(self, number: int) -> bool:
        """Whether a site is one of the stragglers."""
        return number % self.stragglers == self.stragglers - 1


class ChurningSites(SlowTransport):
    """A transport for sites of any kind that have a ``name`` and an ``answer``; a node does one task at a time."""

    def __init__(self, sites: Mapping[int, Any], churn: Churn) -> None:
        super().__init__(dict(sites), self._seconds)
        self.fate = self._reaches
        self._churn = churn
        self._numbers = {site.name: number for number, site in enumerate(sites.values())}
        self.delivered = 0  # bytes of replies that the coordinator was given

    def nodes(self) -> list[int]:
        begun = self.sent[-1][1].round if self.sent else 0
        return list(self.sites)[: self._churn.first + self._churn.joins * begun]

    def receive(self, timeout: float) -> Iterable[Incoming]:
        ready = list(super().receive(timeout))
        self.delivered += sum(len(reply.payload) for reply in ready)
        return ready

    def _seconds(self, site: str, round_: int) -> float:
        pace = self._churn.pace * (0.5 + _draw("pace", site, round_) / 2)
        return pace * SLOWER if self._churn.is_slow(self._numbers[site]) else pace

    def _reaches(self, event: str, node: int, round_: int) -> bool:
        drawn, half = _draw("drop", self.sites[node].name, round_), self._churn.drop / 2
        return drawn >= half if event == "send" else not half <= drawn < 2 * half


class Seat:
    """One of many sites that share a state."""

    def __init__(self, crowd: SimulatedSites, number: int) -> None:
        self.name = f"site-{number}"
        self._crowd, self._number = crowd, number

    def answer(self, task: TrainTask, payload: bytes, signature: str = "") -> bytes:
        """A recorded step under its own name."""
        return self._crowd.answer(self.name, self._number, task, payload)


def _draw(what: str, site: str, round_: int) -> float:
    return random.Random(f"{what}/{site}/{round_}").random()
