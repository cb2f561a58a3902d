"""Aggregation leads from admitted updates to the next published version.

In memory are the merged update, and a few times one part of the layout; states are read from files and written to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
from server.ledger.versions import PublishedState
from server.round.weighting import compute_site_weights


@dataclass(frozen=True)
class AdmittedUpdate:
    """An update that has passed admission, decoded.

    Attributes:
        site: name of the site.
        envelope: the envelope that it came in; without its sections, so that memory does not grow with sites.
        tensors: the update, float32, in the layout of the run; read from a file where it is used.
        node: id of the node that has sent it.
        version: version that it was trained from.
        norm: Euclidean norm of the tensors.
    """

    site: str
    envelope: Envelope
    tensors: Mapping[str, Array]
    node: int = 0
    version: int = 0
    norm: float = 0.0


def sort_by_site(updates: Iterable[AdmittedUpdate]) -> list[AdmittedUpdate]:
    """Return the updates in the order of site names: sums of floating-point numbers must not depend on arrival."""
    return sorted(updates, key=lambda update: update.site)


def aggregate_round(
    config: RunConfig,
    layout: Layout,
    published: PublishedState,
    admitted: Sequence[AdmittedUpdate],
    round_: int,
    *,
    blobs: BlobStore,
) -> tuple[PublishedState, bytes]:
    """Merge the updates, make the server optimizer's step, and compress it with the server's own error feedback.

    Updates are folded in the order of site names, so that the result does not depend on the order of arrival. An update
    that was trained from an older version is merged as the step that it is, for less weight.

    Args:
        config: of the run: rule, weighting, server optimizer, downlink codec and error feedback.
        layout: of the adapter.
        published: the version that the round starts from.
        admitted: the updates, in any order.
        round_: number of the round.
        blobs: where the next state and its residual are written to.

    Returns:
        The next version, and the packed envelope that leads to it.

    Raises:
        ConfigError: an update lacks what it is weighed by, there are too few for the rule, or the state is
            one of another server optimizer.
        NonFiniteError: the step, the next state or the server optimizer's memory has overflowed.
        StateError: the published state is not what was published.
    """
    step, outer = _compute_step(config, layout, published, admitted, round_)
    with blobs.writer() as state_file, blobs.writer() as residual_file:
        header, envelope = _encode_step(
            config,
            layout,
            published,
            step,
            round_,
            write_state=lambda state: state_file.write(as_bytes(state)),
            write_residual=lambda residual: residual_file.write(as_bytes(residual)),
        )
    if header.base_digest != published.digest:
        actual = header.base_digest.hex()[:16]
        raise StateError(f"version {published.version}: its state is {actual}: must be {published.digest.hex()[:16]}")
    next_published = PublishedState(
        version=published.version + 1,
        digest=header.result_digest,
        state=TensorFile(blobs.folder / state_file.name, layout),
        residual=TensorFile(blobs.folder / residual_file.name, layout),
        outer=outer,
    )
    return next_published, envelope


def _encode_step(
    config: RunConfig,
    layout: Layout,
    published: PublishedState,
    step: Tensors,
    round_: int,
    *,
    write_state: Callable[[Array], Any],
    write_residual: Callable[[Array], Any],
) -> tuple[Header, bytes]:
    """Encode a step part by part, and write the next state and its residual as they come.

    The step is emptied on the way, so that memory does not hold it twice.
    """
    feedback = config.error_feedback

    def take_target(slices: list[TensorSlice]) -> Tensors:
        """Return what is coded of some slices: their step plus the residual."""
        change: Tensors = {}
        for piece in slices:
            name = piece.spec.name
            change[name] = step[name][slice_rows(piece)] if piece.total else step.pop(name)
        return feedback.target(change, read_slices(published.residual, slices), round_)

    def write_slice(piece: TensorSlice, target: Array, decoded: Array, next_state: Array) -> None:
        name = piece.spec.name
        write_state(next_state)
        write_residual(feedback.residual({name: target}, {name: decoded})[name])

    header = _build_header(config, layout, published, round_)
    codec = CodecSpec.parse(config.downlink_codec)
    return stream_delta(take_target, published.state, layout, codec, header, write_slice)


def _build_header(config: RunConfig, layout: Layout, published: PublishedState, round_: int) -> Header:
    """Build the header of the next version, in which coding fills in codec and digests."""
    return Header(
        kind=Kind.DELTA,
        run=config.run,
        round=round_,
        version=published.version + 1,
        codec="",
        layout_digest=layout.digest,
        base_digest=published.digest,
        result_digest=published.digest,
    )


def _compute_step(
    config: RunConfig, layout: Layout, published: PublishedState, admitted: Sequence[AdmittedUpdate], round_: int
) -> tuple[Tensors, ServerOptimizerState]:
    """Return the step that the server optimizer makes of the merged update, and its memory after it."""
    ordered = sort_by_site(admitted)
    merger = Merger(rule=parse_rule(config.rule), layout=layout, space=config.space)
    updates = InMemoryUpdates(layout, [update.tensors for update in ordered])
    ages = [published.version - update.version for update in ordered]
    headers = [update.envelope.header for update in ordered]
    weights = compute_site_weights(
        config.weigh_by, headers, steps=config.steps, batch_size=config.batch_size, ages=ages
    )
    merged = merger.merge(published.state, weights, updates, round_=round_)
    step, outer = config.outer.update(merged, load_optimizer_state(config, layout, published))
    outer.check_finite()  # before the version is written: the update that it is of can still be refused
    return step, outer


def load_optimizer_state(config: RunConfig, layout: Layout, published: PublishedState) -> ServerOptimizerState:
    """Return the memory of the server optimizer, which is new if the published version has none.

    Args:
        config: of the run, with the server optimizer.
        layout: of the adapter.
        published: the version that the round starts from.

    Returns:
        The state that the next step starts from.

    Raises:
        ConfigError: the memory is that of another optimizer.
    """
    optimizer, state = config.outer, published.outer
    if state is None or not state.slots:
        return optimizer.init(layout)
    if state.optimizer != optimizer.name:
        rule = f"must be {state.optimizer}, whose state this run keeps: choose a new name for the run"
        raise ConfigError("server-optimizer", optimizer.name, rule)
    return state
