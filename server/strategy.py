"""From admitted updates to the next published version. No networking, no storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedcompress.codecs import CodecSpec
from fedcompress.config import RunConfig
from fedcompress.merging import Held, Merger, rule_named
from fedcompress.pipeline import encode_delta
from fedcompress.types import Layout, Tensors, state_digest
from fedcompress.wire import Envelope, Header, Kind
from server.ledger import Published


@dataclass(frozen=True)
class Admitted:
    """One update that passed admission, decoded."""

    site: str
    envelope: Envelope
    tensors: Tensors


def next_version(
    config: RunConfig, layout: Layout, published: Published, admitted: Sequence[Admitted], round_: int
) -> tuple[Published, bytes]:
    """Merge, step, and compress the step with the server's own error feedback.

    Updates are folded in the order of site names, so the result does not depend on the
    order of arrival. Weights are the numbers of training examples.

    Returns:
        The next version, and the envelope that leads to it.
    """
    ordered = sorted(admitted, key=lambda a: a.site)
    merger = Merger(rule=rule_named(config.rule), layout=layout)
    updates = Held(layout, [a.tensors for a in ordered])
    weights = [float(a.envelope.header.examples) for a in ordered]
    merged = merger.merge(published.state, weights, updates, round_=round_)
    step = np.float32(config.server_lr)
    feedback = config.error_feedback
    target = feedback.target({n: step * v for n, v in merged.items()}, published.residual, round_)
    header = Header(
        kind=Kind.DELTA,
        run=config.run,
        round=round_,
        version=published.version + 1,
        codec="",
        layout_digest=layout.digest,
        base_digest=published.digest,
        result_digest=published.digest,
    )
    codec = CodecSpec.parse(config.downlink_codec)
    envelope, decoded, state = encode_delta(target, published.state, layout, codec, header)
    digest = state_digest(layout, state)
    return Published(published.version + 1, digest, state, feedback.residual(target, decoded)), envelope
