"""What crossed between coordinator and sites, each way, and what the same messages would take uncompressed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedcompress.traffic.accounting import BASELINES, Traffic
from fedcompress.types import Layout

TENSORS = ("state", "update")  # kinds of messages that uncompressed averaging would send too
WAYS = ("up", "down")
Baselines = dict[str, dict[str, int]]  # dtype -> direction -> bytes


@dataclass(frozen=True, kw_only=True)
class Crossed:
    """Bytes of some messages.

    Attributes:
        uplink_bytes: payload, that is, whole envelopes; so is ``downlink_bytes``.
        uplink_protocol_bytes: what Flower's records add to them; so are ``downlink_protocol_bytes``.
        uplink_transport_bytes: what else crossed the links of sites, of each between the reply before these messages
            and the one among them; None where no site has counted; so are ``downlink_transport_bytes``.
        baseline_bytes: what the same messages would take with every tensor uncompressed, by dtype and direction.
    """

    uplink_bytes: int
    downlink_bytes: int
    uplink_protocol_bytes: int
    downlink_protocol_bytes: int
    uplink_transport_bytes: int | None
    downlink_transport_bytes: int | None
    baseline_bytes: Baselines


@dataclass(frozen=True, kw_only=True)
class SiteRound(Crossed):
    """One site in one round; ``site`` is empty for all that were never admitted."""

    round: int
    site: str


@dataclass(frozen=True)
class Sums:
    """Of the messages of one direction: bytes, and how many hold tensors."""

    payload: int = 0
    protocol: int = 0
    tensors: int = 0

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.payload + other.payload, self.protocol + other.protocol, self.tensors + other.tensors)


def baselines(layout: Layout | None, tensors: Mapping[str, int]) -> Baselines:
    """Bytes of so many messages with tensors in each direction; empty before it is known what the run trains."""
    if layout is None:
        return {}
    traffic = {way: Traffic(messages=count, payload=0) for way, count in tensors.items()}
    return {dtype: {way: t.baseline(layout, dtype) for way, t in traffic.items()} for dtype in BASELINES}


def crossed(up: Sums, down: Sums, transport: tuple[int | None, int | None], layout: Layout | None) -> dict[str, Any]:
    """The fields of a ``Crossed``."""
    return {
        "uplink_bytes": up.payload,
        "downlink_bytes": down.payload,
        "uplink_protocol_bytes": up.protocol,
        "downlink_protocol_bytes": down.protocol,
        "uplink_transport_bytes": transport[0],
        "downlink_transport_bytes": transport[1],
        "baseline_bytes": baselines(layout, {"up": up.tensors, "down": down.tensors}),
    }
