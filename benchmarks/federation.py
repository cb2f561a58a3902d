"""A federation in one process: real training and real bytes, without the transport.

The rounds are those of the coordinator: sites start from the published state, send encoded
updates with error feedback, the merge rule makes a change, and it is published by another
encoded update with feedback of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.settings.base import Setting
from fedcompress.codecs import CodecSpec, ErrorFeedback, decode_sections, encode_sections
from fedcompress.codecs.error_feedback import pack_residual, unpack_residual
from fedcompress.merging import InMemoryUpdates, Merger, parse_rule
from fedcompress.types import Tensors, add, subtract, zeros

# bytes of prefix, header, metrics and digest in a federation
UP_ENVELOPE = 295
DOWN_ENVELOPE = 208


@dataclass
class Run:
    """Records what a federation did: the metric after each round (0 is the start), and the bytes of all rounds."""

    metrics: list[float] = field(default_factory=list)
    up_bytes: int = 0
    down_bytes: int = 0
    up_ratio: float = 0.0
    down_ratio: float = 0.0


@dataclass(frozen=True)
class Merge:
    """Records what a merge was made from and what became of it, before it is compressed."""

    state: Tensors
    weights: Sequence[int]
    updates: Sequence[Tensors]
    change: Tensors
    target: Tensors  # with what earlier downlinks left out


class _Sender:
    """One end that encodes, with its residual; counts bytes of sections."""

    def __init__(self, setting: Setting, feedback: float, store: str, number: int) -> None:
        self._layout = setting.layout
        self._keep = ErrorFeedback(decay=feedback, store=store)
        self._number = number
        self._rest = zeros(setting.layout)
        self.sent = 0

    def target(self, change: Tensors) -> Tensors:
        """A change with what was left out before."""
        return self._keep.target(change, self._rest)

    def send(self, spec: CodecSpec, change: Tensors, round_: int) -> Tensors:
        """Encode a change with feedback, count its bytes, and return what arrives."""
        target = self.target(change)
        sections = encode_sections(spec, self._layout, target, seed=1000 * round_ + self._number)
        self.sent += sum(map(len, sections))
        decoded = decode_sections(spec, self._layout, sections)
        kept = pack_residual(self._keep.residual(target, decoded), self._layout, self._keep.store)
        self._rest = unpack_residual(kept, self._layout)
        return decoded


def _codecs(text: str | Sequence[str], rounds: int) -> list[CodecSpec]:
    return [CodecSpec.parse(t) for t in ([text] * rounds if isinstance(text, str) else text)]


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
    weights: Sequence[float] = (),
    every: int = 1,
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
        weights: of the sites; their numbers of examples if left out.
        every: rounds between evaluations.
        on_merge: called in every round.
    """
    ups, downs = (_codecs(c, rounds) for c in (up, down))
    layout, sites = setting.layout, range(len(setting.examples))
    senders = [_Sender(setting, feedback, store, number) for number in (*sites, 999)]
    state, merger = setting.initial(seed), Merger(rule=parse_rule(rule), layout=layout)
    run = Run([setting.evaluate(state)])
    for round_ in range(1, rounds + 1):
        updates = []
        for site in sites:
            delta = subtract(setting.train(state, site, round_, seed), state)
            updates.append(senders[site].send(ups[round_ - 1], delta, round_))
        change = merger.merge(state, weights or setting.examples, InMemoryUpdates(layout, updates), round_=round_)
        on_merge(Merge(state, setting.examples, updates, change, senders[-1].target(change)))
        state = add(state, senders[-1].send(downs[round_ - 1], change, round_))
        if round_ % every == 0 or round_ == rounds:
            run.metrics.append(setting.evaluate(state))
    run.up_bytes = rounds * len(sites) * UP_ENVELOPE + sum(s.sent for s in senders[:-1])
    run.down_bytes = rounds * DOWN_ENVELOPE + senders[-1].sent
    plain = layout.plain_bytes(2) * rounds
    run.up_ratio = plain * len(sites) / run.up_bytes
    run.down_ratio = plain / run.down_bytes
    return run
