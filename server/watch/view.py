"""A snapshot is one look at a run: what its ledger and its last events say, as a dataclass and as a JSON document."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedcompress.traffic.accounting import BASELINES, Traffic
from fedcompress.types import Layout
from server.events import RunFailed, RunStarted
from server.ledger.quality import Quality, compute_baseline, pool_quality
from server.ledger.reader import NOT_COUNTED, Awaited, Evaluated, RoundRow, read_events, since_start
from server.ledger.traffic import TENSORS
from server.runs import describe_run_state, find_run_processes, load_saved_settings, resolve_run_name, run_settings
from server.watch.reading import Carried, Refusal, WatchReader

LAST_REFUSALS = 50  # refusals that a snapshot has
CODES = 30  # reasons of refusals that are counted apart; a site may report any
OTHER = "(other)"  # stands for all other reasons
WORKING = ("waiting", "asked", "merging", "evaluating")  # states of a run that somebody works on


@dataclass(frozen=True, kw_only=True)
class SiteView:
    """Shows a site that was admitted at least once.

    Attributes:
        site: name of the site.
        awaited_since: when it was asked for what it has not sent yet, seconds since 1970; None if nothing is awaited.
        merged_round: the last round that merged an update of it; None if there is none.
        version: version that it holds; None if it holds nothing.
        uplink_bytes: payload of all that it has sent.
        downlink_bytes: payload of all that was sent to it.
        uplink_transport_bytes: what it sent over its link besides Flower's records, up to its last reply, as it
            counts; None where it does not count.
        downlink_transport_bytes: what it received over its link besides Flower's records; None likewise.
        rate: bytes per second of its last exchange, without the time that it worked; 0 if not known.
        examples: training examples of its last update.
        refused: refusals of its replies.
        accuracy: of the version that it was sent last, on its own held-out rows; None if it has not reported it.
        loss: mean loss of that version on these rows, in nats; None likewise.
        alone: accuracy on these rows of what it trained alone; None if it has not reported it.
    """

    site: str
    awaited_since: float | None
    merged_round: int | None
    version: int | None
    uplink_bytes: int
    downlink_bytes: int
    uplink_transport_bytes: int | None
    downlink_transport_bytes: int | None
    rate: float
    examples: int
    refused: int
    accuracy: float | None
    loss: float | None
    alone: float | None


@dataclass(frozen=True, kw_only=True)
class Total:
    """Sums over all messages of one direction.

    Attributes:
        messages: how many there are.
        payload_bytes: bytes of whole envelopes.
        protocol_bytes: bytes that Flower's records add to them.
        transport_bytes: what else crossed the links of sites that count; None if no site does.
    """

    messages: int
    payload_bytes: int
    protocol_bytes: int
    transport_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Compares what was sent with the same messages with every tensor uncompressed.

    Attributes:
        uplink_bytes: what sites would have sent.
        downlink_bytes: what sites would have been sent.
        uplink_ratio: how many times fewer bytes sites have sent.
        downlink_ratio: how many times fewer bytes sites were sent.
        ratio: how many times fewer bytes it was in both directions together.
        wire_ratio: the same, with all that crossed the links taken for what was sent; None unless every site counts.
    """

    uplink_bytes: int
    downlink_bytes: int
    uplink_ratio: float
    downlink_ratio: float
    ratio: float
    wire_ratio: float | None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Shows a run at one time. Times are seconds since 1970, sizes bytes.

    ``state`` is ``starting``, ``waiting`` (for sites to connect), ``asked`` (they train), ``merging``, ``evaluating``
    (the last version), ``finished``, ``stopped``, ``failed``, or ``interrupted``: it has not ended, and nobody works.
    """

    at: float
    run: str
    runs: tuple[str, ...]
    state_dir: str
    state: str
    error: str  # of the last attempt, if it failed
    round: int  # the round that is worked at; 0: none
    rounds: int | None  # rounds that are planned
    rounds_done: int
    parameters: int
    since: float | None  # when the first of the awaited sites was asked
    until: float | None  # when the last of them is given up
    awaited: tuple[Awaited, ...]
    answered: int  # nodes asked in this round that have answered
    accuracy_start: float | None
    loss_start: float | None
    accuracy: float | None
    loss: float | None
    sites: tuple[SiteView, ...]
    history: tuple[RoundRow, ...]
    totals: dict[str, Total]  # by direction: up, down
    baselines: dict[str, Baseline]
    traffic: tuple[Carried, ...]
    refused: int
    refused_by_code: dict[str, int]
    refusals: tuple[Refusal, ...]  # the last, the newest first

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document; numbers that JSON lacks are null."""
        return {key: _replace_not_finite(value) for key, value in asdict(self).items()}


def _replace_not_finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _replace_not_finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_replace_not_finite(item) for item in value]
        case _:
            return value


def take_snapshot(state_dir: Path, run: str = "") -> Snapshot:
    """Take a snapshot of a run, also while its coordinator writes; nothing is changed.

    Args:
        state_dir: the coordinator's.
        run: its name; empty: the last that was started.

    Raises:
        ConfigError: there is no such state directory or run.
        StateError: its ledger cannot be read.
    """
    name = resolve_run_name(state_dir, run)
    with WatchReader(state_dir) as reader, reader.one_look():
        carried = reader.carried(name)
        refused_by_code = reader.refusals_by_code(name)
        qualities = dict(reader.quality(name))
        history = tuple(reader.rounds(name))
        layout = reader.layout(name)
        start = qualities.get(0)
        latest = qualities[max(qualities)] if qualities else None
        sites = _view_sites(reader, name, carried, reader.evaluated(name))
        totals = {way: _sum_direction(carried, way, sites) for way in ("up", "down")}
        return Snapshot(
            at=time.time(),
            run=name,
            runs=tuple(reader.runs()),
            state_dir=str(state_dir),
            **_read_progress(reader, state_dir, name),
            rounds_done=history[-1].round if history else 0,
            parameters=layout.numel if layout else 0,
            accuracy_start=start.accuracy if start else None,
            loss_start=start.loss if start else None,
            accuracy=latest.accuracy if latest else None,
            loss=latest.loss if latest else None,
            sites=sites,
            history=history,
            totals=totals,
            baselines=_compare_baselines(carried, layout, _sum_crossed(totals, sites)),
            traffic=tuple(carried),
            refused=sum(refused_by_code.values()),
            refused_by_code=_cap_codes(refused_by_code),
            refusals=tuple(reader.last_refusals(name, LAST_REFUSALS)),
        )


def _read_progress(reader: WatchReader, folder: Path, name: str) -> dict[str, Any]:
    """Return state, round, who is awaited, and the error, from events, locks and tasks."""
    last = since_start(read_events(folder, name))
    settings = run_settings(load_saved_settings(folder), name)
    rounds = settings.get("rounds") or next((e.get("rounds") for e in last if e["event"] == RunStarted.kind), None)
    state = describe_run_state(last, find_run_processes(folder, name))
    current = reader.rounds_done(name) + 1
    tasks = reader.count_tasks(name, current)
    awaited = reader.awaited(name)
    if state == "running":
        state = _find_phase(current, rounds, tasks, len(awaited))
    if state not in WORKING:
        awaited = []
        tasks = 0
        current = 0
    has_failed = bool(last) and last[-1]["event"] == RunFailed.kind and state == "failed"
    return {
        "state": state,
        "error": str(last[-1].get("message", "")) if has_failed else "",
        "round": current,
        "rounds": rounds,
        "since": min((a.since for a in awaited), default=None),
        "until": max((a.until for a in awaited), default=None),
        "awaited": tuple(awaited),
        "answered": max(0, tasks - sum(a.round == current for a in awaited)),
    }


def _find_phase(current: int, rounds: int | None, tasks: int, awaited: int) -> str:
    """Tell what a coordinator does that neither waits for sites to connect nor has ended."""
    if rounds is not None and current > rounds:
        return "evaluating"
    if awaited:
        return "asked"
    return "merging" if tasks else "waiting"


def _view_sites(
    reader: WatchReader, run: str, carried: Sequence[Carried], evaluated: Evaluated
) -> tuple[SiteView, ...]:
    since = {a.site: a.since for a in reader.awaited(run)}
    merged = reader.last_merged(run)
    refused = reader.refusals_by_site(run)
    measured: dict[str, Quality | None] = {}
    alone: dict[str, float | None] = {}
    for sites in evaluated.values():
        measured |= {site: pool_quality([metrics]) for site, metrics in sites.items()}
        alone |= {site: compute_baseline(metrics) for site, metrics in sites.items()}
    transport = reader.transport(run, "site")
    views = []
    for row in reader.known_sites(run):
        own = [c for c in carried if c.site == row.site]
        quality = measured.get(row.site)
        up, down = transport.get(row.site, NOT_COUNTED)
        views.append(
            SiteView(
                site=row.site,
                awaited_since=since.get(row.site),
                merged_round=merged.get(row.site),
                version=row.version,
                uplink_bytes=sum(c.payload_bytes for c in own if c.direction == "up"),
                downlink_bytes=sum(c.payload_bytes for c in own if c.direction == "down"),
                uplink_transport_bytes=up,
                downlink_transport_bytes=down,
                rate=row.rate,
                examples=row.examples,
                refused=refused.get(row.site, 0),
                accuracy=quality.accuracy if quality else None,
                loss=quality.loss if quality else None,
                alone=alone.get(row.site),
            )
        )
    return tuple(views)


def _sum_direction(carried: Sequence[Carried], direction: str, sites: Sequence[SiteView]) -> Total:
    rows = [c for c in carried if c.direction == direction]
    counts = [s.uplink_transport_bytes if direction == "up" else s.downlink_transport_bytes for s in sites]
    known = [count for count in counts if count is not None]
    return Total(
        messages=sum(c.messages for c in rows),
        payload_bytes=sum(c.payload_bytes for c in rows),
        protocol_bytes=sum(c.protocol_bytes for c in rows),
        transport_bytes=sum(known) if known else None,
    )


def _sum_crossed(totals: dict[str, Total], sites: Sequence[SiteView]) -> int:
    """Sum all bytes that crossed the links, both ways; return 0 if that is not known of every site."""
    if any(s.uplink_transport_bytes is None for s in sites):
        return 0
    return sum(t.payload_bytes + t.protocol_bytes + (t.transport_bytes or 0) for t in totals.values())


def _compare_baselines(carried: Sequence[Carried], layout: Layout | None, crossed: int) -> dict[str, Baseline]:
    """Compare with what the same messages would take; reports hold no tensors, so they count for nothing."""
    if layout is None:
        return {}
    traffic = {
        way: Traffic(
            messages=sum(c.messages for c in carried if c.direction == way and c.kind in TENSORS),
            payload=sum(c.payload_bytes for c in carried if c.direction == way),
        )
        for way in ("up", "down")
    }
    both = Traffic(messages=sum(t.messages for t in traffic.values()), payload=sum(t.payload for t in traffic.values()))
    return {
        dtype: Baseline(
            uplink_bytes=traffic["up"].baseline(layout, dtype),
            downlink_bytes=traffic["down"].baseline(layout, dtype),
            uplink_ratio=traffic["up"].ratio(layout, dtype),
            downlink_ratio=traffic["down"].ratio(layout, dtype),
            ratio=both.ratio(layout, dtype),
            wire_ratio=both.baseline(layout, dtype) / crossed if crossed else None,
        )
        for dtype in BASELINES
    }


def _cap_codes(counts: dict[str, int]) -> dict[str, int]:
    """Return the most frequent counts, and the sum of the rest: whoever sends names cannot make this long."""
    most = dict(list(counts.items())[:CODES])
    rest = sum(counts.values()) - sum(most.values())
    if rest:
        most[OTHER] = most.get(OTHER, 0) + rest
    return most
