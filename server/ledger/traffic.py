"""Bytes that crossed between coordinator and sites, each way, and what the same messages would take uncompressed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedcompress.traffic.accounting import BASELINES, Traffic
from fedcompress.types import Layout

TENSORS = ("state", "update")  # kinds of messages that uncompressed averaging would send too
WAYS = ("up", "down")  # from sites to the coordinator, and back
Baselines = dict[str, dict[str, int]]  # dtype -> direction -> bytes


@dataclass(frozen=True, kw_only=True)
class Crossed:
    """Counts the bytes of some messages.

    Attributes:
        uplink_bytes: payload that sites sent, that is, whole envelopes.
        downlink_bytes: payload that sites were sent.
        uplink_protocol_bytes: what Flower's records add to the payload that sites sent.
        downlink_protocol_bytes: what Flower's records add to the payload that sites were sent.
        uplink_transport_bytes: what else the sites sent over their links, each of them between its reply before these
            messages and its reply among them; None where no site has counted.
        downlink_transport_bytes: what else the sites received over their links, in the same time; None likewise.
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
    """Counts the bytes of one site in one round.

    Attributes:
        round: number of the round.
        site: name of the site; empty for all sites together that were never admitted.
    """

    round: int
    site: str


@dataclass(frozen=True)
class TrafficSums:
    """Sums over the messages of one direction.

    Attributes:
        payload: bytes of whole envelopes.
        protocol: bytes that Flower's records add to them.
        tensors: messages that hold tensors.
    """

    payload: int = 0
    protocol: int = 0
    tensors: int = 0

    def __add__(self, other: TrafficSums) -> TrafficSums:
        return TrafficSums(self.payload + other.payload, self.protocol + other.protocol, self.tensors + other.tensors)


def compute_baselines(layout: Layout | None, tensors: Mapping[str, int]) -> Baselines:
    """Compute what uncompressed messages would take.

    Args:
        layout: of the run; None before it is known what the run trains.
        tensors: number of messages with tensors, by direction.

    Returns:
        Bytes by dtype and direction; empty without a layout.
    """
    if layout is None:
        return {}
    traffic = {way: Traffic(messages=count, payload=0) for way, count in tensors.items()}
    return {dtype: {way: t.baseline(layout, dtype) for way, t in traffic.items()} for dtype in BASELINES}


def crossed_fields(
    up: TrafficSums, down: TrafficSums, transport: tuple[int | None, int | None], layout: Layout | None
) -> dict[str, Any]:
    """Return the fields of a ``Crossed``, to build it or a class derived from it.

    Args:
        up: of the messages from sites.
        down: of the messages to sites.
        transport: bytes up and down that crossed links besides; None where no site has counted.
        layout: of the run; None before it is known what the run trains.

    Returns:
        Values by the name of the field.
    """
    return {
        "uplink_bytes": up.payload,
        "downlink_bytes": down.payload,
        "uplink_protocol_bytes": up.protocol,
        "downlink_protocol_bytes": down.protocol,
        "uplink_transport_bytes": transport[0],
        "downlink_transport_bytes": transport[1],
        "baseline_bytes": compute_baselines(layout, {"up": up.tensors, "down": down.tensors}),
    }
