"""From admitted updates to the next published version.

Memory: the merged update, and a few times a part of the layout; states are read from files and written to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedcompress.chunks import TensorSlice, read_slices, slice_rows
from fedcompress.codecs import CodecSpec
from fedcompress.config.run_config import RunConfig
from fedcompress.errors import ConfigError, StateError
from fedcompress.merging import InMemoryUpdates, Merger, parse_rule
from fedcompress.merging.server_optim import ServerOptimizerState
from fedcompress.pipeline.states import stream_delta
from fedcompress.storage.blobs import BlobStore
from fedcompress.storage.tensor_file import TensorFile, as_bytes
from fedcompress.types import Array, Layout, Tensors
from fedcompress.wire import Envelope, Header, Kind
from server.ledger.ledger import PublishedState
from server.round.weighting import compute_site_weights


@dataclass(frozen=True)
class AcceptedUpdate:
    """One update that passed admission, decoded; its tensors may be read from a file, its envelope has no sections.

    ``version`` is the one that it was trained from, ``norm`` the Euclidean one of its tensors.
    """

    site: str
    envelope: Envelope
    tensors: Mapping[str, Array]
    node: int = 0
    version: int = 0
    norm: float = 0.0


def aggregate_round(
    config: RunConfig,
    layout: Layout,
    published: PublishedState,
    admitted: Sequence[AcceptedUpdate],
    round_: int,
    *,
    blobs: BlobStore,
) -> tuple[PublishedState, bytes]:
    """Merge, step, and compress the step with the server's own error feedback.

    Updates are folded in the order of site names, so the result does not depend on the
    order of arrival. One that was trained from an older version is merged as the step that it is, for less weight.
    The server optimizer makes the step of what is merged. State and residual are written to ``blobs``.

    Returns:
        The next version, and the envelope that leads to it.

    Raises:
        ConfigError: an update lacks what it is weighed by, there are too few for the rule, or the state is
            one of another server optimizer.
        StateError: the published state is not what was published.
    """
    step, outer = _step(config, layout, published, admitted, round_)
    feedback = config.error_feedback

    def target(pieces: list[TensorSlice]) -> Tensors:
        """Of a part, which the step then no longer holds."""
        change = {p.spec.name: step[p.spec.name][slice_rows(p)] if p.total else step.pop(p.spec.name) for p in pieces}
        return feedback.target(change, read_slices(published.residual, pieces), round_)

    header = _header(config, layout, published, round_)
    codec = CodecSpec.parse(config.downlink_codec)
    with blobs.writer() as state, blobs.writer() as residual:

        def keep(piece: TensorSlice, wanted: Array, decoded: Array, reached: Array) -> None:
            name = piece.spec.name
            state.write(as_bytes(reached))
            residual.write(as_bytes(feedback.residual({name: wanted}, {name: decoded})[name]))

        full, envelope = stream_delta(target, published.state, layout, codec, header, keep)
    if full.base_digest != published.digest:
        found = full.base_digest.hex()[:16]
        raise StateError(f"version {published.version}: its state is {found}: must be {published.digest.hex()[:16]}")
    reached, left = (TensorFile(blobs.folder / file.name, layout) for file in (state, residual))
    return PublishedState(published.version + 1, full.result_digest, reached, left, outer), envelope


def _header(config: RunConfig, layout: Layout, published: PublishedState, round_: int) -> Header:
    return Header(
        kind=Kind.DELTA,
        run=config.run,
        round=round_,
        version=published.version + 1,
        codec="",
        layout_digest=layout.digest,
        base_digest=published.digest,  # both are filled in
        result_digest=published.digest,
    )


def _step(
    config: RunConfig, layout: Layout, published: PublishedState, admitted: Sequence[AcceptedUpdate], round_: int
) -> tuple[Tensors, ServerOptimizerState]:
    """What the server optimizer makes of what is merged, and what it remembers."""
    ordered = sorted(admitted, key=lambda a: a.site)
    merger = Merger(rule=parse_rule(config.rule), layout=layout, space=config.space)
    updates = InMemoryUpdates(layout, [a.tensors for a in ordered])
    ages = [published.version - a.version for a in ordered]
    weights = compute_site_weights(config.weigh_by, [a.envelope.header for a in ordered], ages)
    merged = merger.merge(published.state, weights, updates, round_=round_)
    return config.outer.update(merged, load_optimizer_state(config, layout, published))


def load_optimizer_state(config: RunConfig, layout: Layout, published: PublishedState) -> ServerOptimizerState:
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
