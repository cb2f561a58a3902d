"""From admitted updates to the next published version. No networking, no storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedcompress.codecs import CodecSpec
from fedcompress.config import RunConfig
from fedcompress.errors import ConfigError
from fedcompress.merging import Held, Merger, rule_named
from fedcompress.merging.outer import OuterState
from fedcompress.pipeline import encode_delta
from fedcompress.types import Layout, Tensors, state_digest
from fedcompress.wire import Envelope, Header, Kind
from server.ledger import Published
from server.weights import weights_of


@dataclass(frozen=True)
class Admitted:
    """One update that passed admission, decoded; its tensors may be mapped from a file.

    ``version`` is the one that it was trained from, ``norm`` the Euclidean one of its tensors.
    """

    site: str
    envelope: Envelope
    tensors: Tensors
    node: int = 0
    version: int = 0
    norm: float = 0.0


def next_version(
    config: RunConfig,
    layout: Layout,
    published: Published,
    admitted: Sequence[Admitted],
    round_: int,
    *,
    is_cut: bool = False,
) -> tuple[Published, bytes]:
    """Merge, step, and compress the step with the server's own error feedback.

    Updates are folded in the order of site names, so the result does not depend on the
    order of arrival. One that was trained from an older version is merged as the step that it is, for less weight.
    The server optimizer makes the step of what is merged. ``is_cut`` is as in ``encode_update``.

    Returns:
        The next version, and the envelope that leads to it.

    Raises:
        ConfigError: an update lacks what it is weighed by, there are too few for the rule, or the state is
            one of another server optimizer.
    """
    ordered = sorted(admitted, key=lambda a: a.site)
    merger = Merger(rule=rule_named(config.rule), layout=layout, space=config.space)
    updates = Held(layout, [a.tensors for a in ordered])
    ages = [published.version - a.version for a in ordered]
    weights = weights_of(config.weigh_by, [a.envelope.header for a in ordered], ages)
    merged = merger.merge(published.state, weights, updates, round_=round_)
    step, outer = config.outer.update(merged, outer_state(config, layout, published))
    feedback = config.error_feedback
    target = feedback.target(step, published.residual, round_)
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
    envelope, decoded, state = encode_delta(target, published.state, layout, codec, header, is_cut=is_cut)
    digest = state_digest(layout, state)
    return Published(published.version + 1, digest, state, feedback.residual(target, decoded), outer), envelope


def outer_state(config: RunConfig, layout: Layout, published: Published) -> OuterState:
    """What the server optimizer remembers; new if nothing is remembered.

    Raises:
        ConfigError: what is remembered is another optimizer's.
    """
    optimizer, state = config.outer, published.outer
    if state is None or not state.slots:
        return optimizer.init(layout)
    if state.optimizer != optimizer.name:
        rule = f"must be {state.optimizer}, whose state this run keeps: choose a new name for the run"
        raise ConfigError("server-optimizer", optimizer.name, rule)
    return state
