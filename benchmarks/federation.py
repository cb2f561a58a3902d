"""A federation in one process: real training and real bytes, without the transport.

The rounds are those of the coordinator: sites start from the published state, send encoded
updates with error feedback, the merge rule makes a change, and it is published by another
encoded update with feedback of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.settings.base import Setting
from fedcompress.codecs import CodecSpec, Feedback, decode_sections, encode_sections
from fedcompress.codecs.feedback import pack_residual, unpack_residual
from fedcompress.merging import Held, Merger, rule_named
from fedcompress.types import Layout, Tensors, add, subtract, zeros

UP_ENVELOPE, DOWN_ENVELOPE = 295, 208  # bytes of prefix, header, metrics and digest in a federation


@dataclass
class Run:
    """What a federation did: the metric after each round (0 is the start), and bytes of all rounds."""

    metrics: list[float] = field(default_factory=list)
    up_bytes: int = 0
    down_bytes: int = 0
    up_ratio: float = 0.0
    down_ratio: float = 0.0


@dataclass(frozen=True)
class Merge:
    """What a merge was made from and what became of it, before it is compressed."""

    state: Tensors
    weights: Sequence[int]
    updates: Sequence[Tensors]
    change: Tensors
    target: Tensors  # with what earlier downlinks left out


def _send(spec: CodecSpec, setting: Setting, target: Tensors, seed: int) -> tuple[Tensors, int]:
    sections = encode_sections(spec, setting.layout, target, seed=seed)
    return decode_sections(spec, setting.layout, sections), sum(map(len, sections))


def _kept(residual: Tensors, layout: Layout, store: str) -> Tensors:
    return unpack_residual(pack_residual(residual, layout, store), layout)


def federate(
    setting: Setting,
    *,
    rounds: int,
    up: str | Sequence[str],
    down: str | Sequence[str],
    seed: int,
    feedback: float = 1.0,
    store: str = "none",
    rule: str = "lora-ridge",
    every: int = 1,
    on_round: Callable[[int, float], None] = lambda round_, metric: None,
    on_merge: Callable[[Merge], None] = lambda merge: None,
) -> Run:
    """Run it. Ratios are against bfloat16 both ways, envelopes counted.

    Args:
        setting: model, data and sites.
        rounds: how many.
        up: codec of the sites, or one for each round.
        down: codec of the coordinator, or one for each round.
        seed: of training.
        feedback: decay of residuals.
        store: how residuals are kept between rounds.
        rule: of the merge.
        every: rounds between evaluations.
        on_round: called with round and metric.
        on_merge: called in every round.
    """
    ups, downs = ([CodecSpec.parse(s) for s in ([c] * rounds if isinstance(c, str) else c)] for c in (up, down))
    keep = Feedback(decay=feedback, store=store)
    layout, sites = setting.layout, range(len(setting.examples))
    state, published_rest = setting.initial(seed), zeros(layout)
    rests = [zeros(layout) for _ in sites]
    run = Run([setting.evaluate(state)])
    merger = Merger(rule=rule_named(rule), layout=layout)
    for round_ in range(1, rounds + 1):
        updates, up_spec, down_spec = [], ups[round_ - 1], downs[round_ - 1]
        for site in sites:
            delta = subtract(setting.train(state, site, round_, seed), state)
            target = keep.target(delta, rests[site])
            decoded, size = _send(up_spec, setting, target, 1000 * round_ + site)
            rests[site] = _kept(keep.residual(target, decoded), layout, store)
            updates.append(decoded)
            run.up_bytes += UP_ENVELOPE + size
        change = merger.merge(state, setting.examples, Held(layout, updates), round_=round_)
        target = keep.target(change, published_rest)
        on_merge(Merge(state, setting.examples, updates, change, target))
        decoded, size = _send(down_spec, setting, target, 1000 * round_ + 999)
        published_rest = _kept(keep.residual(target, decoded), layout, store)
        run.down_bytes += DOWN_ENVELOPE + size
        state = add(state, decoded)
        if round_ % every == 0 or round_ == rounds:
            run.metrics.append(setting.evaluate(state))
            on_round(round_, run.metrics[-1])
    plain = layout.plain_bytes(2) * rounds
    run.up_ratio, run.down_ratio = plain * len(sites) / run.up_bytes, plain / run.down_bytes
    return run
