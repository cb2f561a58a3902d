"""Published states become envelopes, and come back: as a seed, a snapshot, or a delta from the state before.

All of it goes chunk by chunk; what is in memory goes the same way, with a source and a sink in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from fedcompress.adapters.constants import constants_digest, load_constants
from fedcompress.adapters.seeded_init import seeded_init
from fedcompress.chunks import (
    ROUND_CHUNK_ENTRIES,
    TensorSlice,
    collect_slices,
    layout_of_slices,
    read_slices,
    slice_rows,
    split_layout,
)
from fedcompress.codecs import CodecSpec
from fedcompress.errors import HeaderError, MismatchError, PayloadError, StateError
from fedcompress.pipeline.coding import ReadChunk, decode_chunks, encode_body, open_envelope, parse_codec, read_from
from fedcompress.storage.tensor_file import StateHasher, streamed_state_digest
from fedcompress.types import Array, Layout, Tensors, add, state_digest
from fedcompress.wire import Envelope, Header, Kind, Limits, pack, unpack

# Is given each slice: the change that was wanted, the change that receivers decode, and the state that they reach.
OnReached = Callable[[TensorSlice, Array, Array, Array], None]


def encode_delta(
    change: Mapping[str, Array],
    base: Mapping[str, Array],
    layout: Layout,
    codec: CodecSpec,
    header: Header,
    *,
    last: Mapping[str, Array] | None = None,
) -> tuple[bytes, Tensors, Tensors]:
    """Encode a DELTA envelope from ``base`` towards ``base + change``.

    Args:
        change: the change that is wanted, float32 by name.
        base: the state before, float32 by name.
        layout: the layout of both.
        codec: how to encode the change.
        header: what else to say; digests and codec are filled in.
        last: as in ``encode_update``.

    Returns:
        The envelope, the decoded change, and the state that every receiver reaches.

    Raises:
        LayoutError: ``change`` does not have the layout.
        NonFiniteError: a value of ``change``, or of the state reached, is NaN or infinite.
    """
    decoded: list[tuple[list[TensorSlice], Tensors]] = []
    reached: list[tuple[list[TensorSlice], Tensors]] = []

    def keep(part: TensorSlice, _: Array, decoded_part: Array, reached_part: Array) -> None:
        decoded.append(([part], {part.spec.name: decoded_part}))
        reached.append(([part], {part.spec.name: reached_part}))

    _, data = stream_delta(read_from(change, layout), base, layout, codec, header, keep, last=last)
    return data, collect_slices(layout, decoded), collect_slices(layout, reached)


def stream_delta(
    read: ReadChunk,
    base: Mapping[str, Array],
    layout: Layout,
    codec: CodecSpec,
    header: Header,
    on_reached: OnReached,
    *,
    last: Mapping[str, Array] | None = None,
) -> tuple[Header, bytes]:
    """Encode a DELTA envelope of which no more than a chunk is in memory; as ``encode_delta`` otherwise.

    Args:
        read: gives the change that is wanted of a chunk.
        base: the state before; read slice by slice where it can be.
        layout: the layout of both.
        codec: how to encode the change.
        header: what else to say; digests and codec are filled in.
        on_reached: is told of each slice.
        last: as in ``encode_update``.

    Returns:
        The header with digests and codec, and the envelope.

    Raises:
        NonFiniteError: a value of the change, or of the state reached, is NaN or infinite.
    """
    before, after = StateHasher(layout), StateHasher(layout)

    def reach(slices: list[TensorSlice], wanted: Tensors, decoded: Tensors) -> None:
        for part in slices:
            name = part.spec.name
            start = read_slices(base, [part])
            reached = add(start, {name: decoded[name]})
            layout_of_slices([part]).check(reached, what="encode_delta: state reached")
            before.update(start)
            after.update(reached)
            on_reached(part, wanted[name], decoded[name], reached[name])

    sections = encode_body(codec, layout, read, header, last=last, on_encoded=reach)
    full = replace(
        header,
        kind=Kind.DELTA,
        codec=str(codec),
        layout_digest=layout.digest,
        base_digest=before.digest(),
        result_digest=after.digest(),
    )
    return full, pack(full, sections)


def encode_snapshot(
    state: Mapping[str, Array],
    layout: Layout,
    *,
    run: str,
    version: int,
    init_seed: int | None = None,
) -> bytes:
    """Encode a whole state: exact values, or only the seed where the seed rebuilds them.

    Args:
        state: float32 tensors by name.
        layout: their layout.
        run: name of the run.
        version: of the published state.
        init_seed: the seed of ``seeded_init`` that may rebuild the state; None to send values.

    Returns:
        A SNAPSHOT envelope.
    """
    header = Header(
        kind=Kind.SNAPSHOT,
        run=run,
        round=version,
        version=version,
        codec="",
        layout_digest=layout.digest,
        result_digest=state_digest(layout, state),
    )
    if init_seed is not None:
        rebuilt = seeded_init(layout, init_seed)
        if state_digest(layout, rebuilt) == header.result_digest:
            return pack(replace(header, codec="none", init_seed=init_seed), ())
    codec = CodecSpec.parse("none")
    return pack(replace(header, codec=str(codec)), encode_body(codec, layout, read_from(state, layout), header))


def decode_state(
    data: bytes | Envelope,
    layout: Layout,
    base: Mapping[str, Array] | None,
    limits: Limits | None = None,
    *,
    base_digest: bytes = b"",
) -> tuple[Envelope, Tensors]:
    """Decode the state that a SNAPSHOT or DELTA envelope leads to.

    Args:
        data: the bytes of one envelope, or what they were unpacked to.
        layout: the receiver's own layout.
        base: the state held now; not needed for a SNAPSHOT.
        limits: of the envelope's size; by default what the layout allows.
        base_digest: the digest of ``base``, where it is known; else it is computed.

    Returns:
        The envelope, and the state's float32 tensors.

    Raises:
        WireError: the bytes are malformed.
        MismatchError: ``base-digest`` if the delta is for another state, ``result-digest``
            if the state reached is not the one that the sender has.
    """
    envelope = open_envelope(data, layout, limits)
    return envelope, collect_slices(layout, stream_state(envelope, layout, base, base_digest=base_digest))


def stream_state(
    data: bytes | Envelope,
    layout: Layout,
    base: Mapping[str, Array] | None,
    limits: Limits | None = None,
    *,
    base_digest: bytes = b"",
) -> Iterator[tuple[list[TensorSlice], Tensors]]:
    """Decode a state chunk by chunk; as ``decode_state`` otherwise.

    That the state is the sender's is known, and raised, only after the last chunk.

    Args:
        data: the bytes of one envelope, or what they were unpacked to.
        layout: the receiver's own layout.
        base: the state held now; read slice by slice where it can be.
        limits: of the envelope's size; by default what the layout allows.
        base_digest: the digest of ``base``, where it is known.

    Yields:
        The slices of each chunk and the state's values, in the order of the layout.
    """
    envelope = open_envelope(data, layout, limits)
    hasher = StateHasher(layout)
    for slices, values in _decode_chunks_of_state(envelope, layout, base, base_digest):
        hasher.update(values)
        yield slices, values
    _compare_result(envelope.header, hasher.digest())


def _decode_chunks_of_state(
    envelope: Envelope, layout: Layout, base: Mapping[str, Array] | None, base_digest: bytes
) -> Iterator[tuple[list[TensorSlice], Tensors]]:
    header = envelope.header
    match header.kind:
        case Kind.SNAPSHOT if header.init_seed is not None:
            if envelope.sections:
                raise PayloadError("snapshot: has both a seed and sections: must have one of them")
            for slices in split_layout(layout, ROUND_CHUNK_ENTRIES):
                yield slices, {s.spec.name: _seeded_slice(s, header.init_seed) for s in slices}
        case Kind.SNAPSHOT:
            yield from decode_chunks(parse_codec(header), layout, envelope.sections)
        case Kind.DELTA:
            yield from _add_delta(envelope, layout, base, base_digest)
        case Kind.UPDATE | Kind.REPORT | Kind.FILE | Kind.CONSTANTS:
            raise HeaderError(f"header.kind: {header.kind.name}: must be SNAPSHOT or DELTA here")


def _seeded_slice(part: TensorSlice, seed: int) -> Array:
    """Return a slice of the seeded start; of a tensor that is cut, the whole is made for a moment."""
    return seeded_init(Layout((part.whole,)), seed)[part.spec.name][slice_rows(part)]


def _add_delta(
    envelope: Envelope, layout: Layout, base: Mapping[str, Array] | None, base_digest: bytes
) -> Iterator[tuple[list[TensorSlice], Tensors]]:
    header = envelope.header
    if base is None:
        held = "nothing"
    else:
        held = (base_digest or streamed_state_digest(layout, base)).hex()
    if base is None or held != header.base_digest.hex():
        raise MismatchError(
            "base-digest",
            f"base_digest: {held[:16]}: must be {header.base_digest.hex()[:16]}, "
            f"the state before version {header.version}",
        )
    for slices, change in decode_chunks(parse_codec(header), layout, envelope.sections):
        reached = add(read_slices(base, slices), change)
        for name, value in reached.items():
            if not np.isfinite(value).all():
                raise PayloadError(f"delta: {name}: overflows the state: all values must be finite")
        yield slices, reached


def check_result(header: Header, layout: Layout, state: Tensors) -> None:
    """Raise ``MismatchError`` unless these are the values that the sender reached.

    Args:
        header: of the sender's envelope, with the digest of the result.
        layout: the receiver's own layout.
        state: the float32 tensors that were decoded.

    Raises:
        MismatchError: ``result-digest``.
    """
    _compare_result(header, state_digest(layout, state))


def _compare_result(header: Header, reached: bytes) -> None:
    if reached != header.result_digest:
        version = f" for version {header.version}" if header.kind is not Kind.FILE else ""
        raise MismatchError(
            "result-digest",
            f"result_digest: {reached.hex()[:16]}: must be {header.result_digest.hex()[:16]}{version}",
        )


def encode_constants(data: bytes, digest: str, *, run: str) -> bytes:
    """Encode a CONSTANTS envelope.

    Args:
        data: the bytes of a safetensors file.
        digest: of the tensors in it, hex, as ``constants_digest`` gives it.
        run: name of the run.

    Returns:
        The envelope, with the bytes as its one section.
    """
    known = bytes.fromhex(digest)
    header = Header(
        kind=Kind.CONSTANTS, run=run, round=0, version=0, codec="", layout_digest=known, result_digest=known
    )
    return pack(header, (data,))


def decode_constants(data: bytes | Envelope) -> tuple[str, bytes]:
    """Check a CONSTANTS envelope, and return the digest, hex, and the safetensors bytes; the tensors are hashed.

    Raises:
        WireError: the bytes are malformed.
        MismatchError: the tensors have another digest.
    """
    envelope = data if isinstance(data, Envelope) else unpack(data, Limits(max_body=len(data)))
    if envelope.header.kind is not Kind.CONSTANTS or len(envelope.sections) != 1:
        raise HeaderError(f"header.kind: {envelope.header.kind.name}: must be CONSTANTS here, with one section")
    try:
        found = constants_digest(load_constants(envelope.sections[0]))
    except StateError as error:
        raise PayloadError(str(error)) from error
    digest = envelope.header.result_digest.hex()
    if found != digest:
        raise MismatchError("constants", f"constants: {found[:16]}: must be {digest[:16]}")
    return digest, envelope.sections[0]
