"""``pipeline`` for tensors that are not in memory together: updates and states, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from fedcompress.adapters.constants import constants_digest, load_constants
from fedcompress.adapters.seeded_init import seeded_init
from fedcompress.chunks import ROUND_CHUNK_ENTRIES, TensorSlice, layout_of_slices, read_slices, split_layout
from fedcompress.codecs import CodecSpec
from fedcompress.errors import HeaderError, MismatchError, PayloadError, StateError
from fedcompress.numerics.seeded_bases import shared_seed
from fedcompress.pipeline.coding import (
    Read,
    check_layout,
    codec_of,
    decode_parts,
    decode_whole,
    derive_seed,
    encode_parts,
    encode_whole,
)
from fedcompress.storage.tensor_file import StateHasher, streamed_state_digest
from fedcompress.types import Array, Layout, Tensors, add, state_digest
from fedcompress.wire import Envelope, Header, Kind, Limits, pack, unpack

KeepReached = Callable[[TensorSlice, Array, Array, Array], None]


def stream_delta(
    read: Read, base: Mapping[str, Array], layout: Layout, codec: CodecSpec, header: Header, keep: KeepReached
) -> tuple[Header, bytes]:
    """A DELTA envelope from ``base`` towards ``base`` plus what is read; codec and digests are filled in.

    Args:
        read: values of a part of the change that is wanted.
        base: the state before.
        layout: of the whole.
        codec: how to encode it.
        header: what else to say.
        keep: is given each piece: what was wanted of it, what the receiver will decode, and the state reached.

    Raises:
        NonFiniteError: a value of the change, or of the state reached, is NaN or infinite.
    """
    before, after = StateHasher(layout), StateHasher(layout)

    def reach(pieces: list[TensorSlice], wanted: Tensors, decoded: Tensors) -> None:
        for piece in pieces:
            name = piece.spec.name
            (start,) = read_slices(base, [piece]).values()
            reached = add({name: start}, decoded)
            layout_of_slices([piece]).check(reached, what="encode_delta: state reached")
            before.update({name: start})
            after.update(reached)
            keep(piece, wanted[name], decoded[name], reached[name])

    shared = shared_seed(header.run, header.round)
    sections = encode_parts(codec, layout, read, seed=derive_seed(header), shared=shared, keep=reach)
    full = replace(
        header,
        kind=Kind.DELTA,
        codec=str(codec),
        layout_digest=layout.digest,
        base_digest=before.digest(),
        result_digest=after.digest(),
    )
    return full, pack(full, sections)


def stream_state(data: bytes, layout: Layout, base: Mapping[str, Array] | None, limits: Limits) -> Iterator[Tensors]:
    """The state that a SNAPSHOT or DELTA envelope leads to, part by part; as ``decode_state`` otherwise.

    That the state is the sender's is known, and raised, after the last part.
    """
    envelope = unpack(data, limits)
    header, digest = envelope.header, StateHasher(layout)
    check_layout(header, layout)
    for values in _parts(envelope, layout, base):
        digest.update(values)
        yield values
    reached = digest.digest()
    if reached != header.result_digest:
        rule = f"must be {header.result_digest.hex()[:16]} for version {header.version}"
        raise MismatchError("result-digest", f"result_digest: {reached.hex()[:16]}: {rule}")


def _parts(envelope: Envelope, layout: Layout, base: Mapping[str, Array] | None) -> Iterator[Tensors]:
    header = envelope.header
    match header.kind:
        case Kind.SNAPSHOT if header.init_seed is not None:
            if envelope.sections:
                raise PayloadError("snapshot: has both a seed and sections: must have one of them")
            if any(t.group == "lora_a" for t in layout.tensors):
                raise PayloadError("snapshot: a seed: full weights start from zero")
            for pieces in split_layout(layout, ROUND_CHUNK_ENTRIES):
                yield seeded_init(layout_of_slices(pieces), header.init_seed)
        case Kind.SNAPSHOT:
            for _, values in decode_parts(codec_of(header), layout, envelope.sections):
                yield values
        case Kind.DELTA:
            _check_start(header, layout, base)
            assert base is not None
            for pieces, change in decode_parts(codec_of(header), layout, envelope.sections):
                reached = add(read_slices(base, pieces), change)
                for name, value in reached.items():
                    if not np.isfinite(value).all():
                        raise PayloadError(f"delta: {name}: overflows the state: all values must be finite")
                yield reached
        case _:
            raise HeaderError(f"header.kind: {header.kind.name}: must be SNAPSHOT or DELTA here")


def _check_start(header: Header, layout: Layout, base: Mapping[str, Array] | None) -> None:
    held = streamed_state_digest(layout, base).hex() if base is not None else "nothing"
    if held != header.base_digest.hex():
        rule = f"must be {header.base_digest.hex()[:16]}, the state before version {header.version}"
        raise MismatchError("base-digest", f"base_digest: {held[:16]}: {rule}")


def encode_delta(
    change: Mapping[str, Array],
    base: Mapping[str, Array],
    layout: Layout,
    codec: CodecSpec,
    header: Header,
    *,
    last: Mapping[str, Array] | None = None,
) -> tuple[bytes, Tensors, Tensors]:
    """A DELTA envelope from ``base`` towards ``base + change``.

    Digests and codec in the header are filled in; ``last`` is as in ``encode_update``.

    Returns:
        The envelope, the decoded change, and the state that every receiver reaches.

    Raises:
        LayoutError: ``change`` does not have the layout.
        NonFiniteError: a value of ``change``, or of the state reached, is NaN or infinite.
    """
    sections = encode_whole(codec, layout, change, header, last)
    decoded = decode_whole(codec, layout, sections)
    reached = add(base, decoded)
    layout.check(reached, what="encode_delta: state reached")
    full = replace(
        header,
        kind=Kind.DELTA,
        codec=str(codec),
        layout_digest=layout.digest,
        base_digest=state_digest(layout, base),
        result_digest=state_digest(layout, reached),
    )
    return pack(full, sections), decoded, reached


def encode_snapshot(
    state: Mapping[str, Array],
    layout: Layout,
    *,
    run: str,
    version: int,
    init_seed: int | None = None,
) -> bytes:
    """A whole state: exact values, or only the seed when the seed rebuilds them."""
    full = Header(
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
        if state_digest(layout, rebuilt) == full.result_digest:
            return pack(replace(full, codec="none", init_seed=init_seed), ())
    spec = CodecSpec.parse("none")
    return pack(replace(full, codec=str(spec)), encode_whole(spec, layout, state, full, None))


def encode_constants(data: bytes, digest: str, *, run: str) -> bytes:
    """A CONSTANTS envelope from the bytes of a safetensors file and the digest of what is in it, hex."""
    known = bytes.fromhex(digest)
    header = Header(
        kind=Kind.CONSTANTS, run=run, round=0, version=0, codec="", layout_digest=known, result_digest=known
    )
    return pack(header, (data,))


def decode_constants(data: bytes) -> tuple[str, bytes]:
    """Digest, hex, and safetensors bytes of a CONSTANTS envelope; what is in them is hashed.

    Raises:
        WireError: the bytes are malformed.
        MismatchError: the tensors have another digest.
    """
    envelope = unpack(data, Limits(max_body=len(data)))
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


def decode_state(
    data: bytes, layout: Layout, base: Mapping[str, Array] | None, limits: Limits | None = None
) -> tuple[Envelope, Tensors]:
    """The state that a SNAPSHOT or DELTA envelope leads to.

    Args:
        data: one envelope.
        layout: the receiver's own.
        base: the state held now; not needed for a SNAPSHOT.
        limits: defaults to what the layout allows.

    Raises:
        WireError: the bytes are malformed.
        MismatchError: ``base-digest`` if the delta is for another state, ``result-digest``
            if the state reached is not the one that the sender has.
    """
    envelope = unpack(data, limits or Limits.for_numel(layout.numel))
    header = envelope.header
    check_layout(header, layout)
    match header.kind:
        case Kind.SNAPSHOT if header.init_seed is not None:
            if envelope.sections:
                raise PayloadError("snapshot: has both a seed and sections: must have one of them")
            state = seeded_init(layout, header.init_seed)
        case Kind.SNAPSHOT:
            state = decode_whole(codec_of(header), layout, envelope.sections)
        case Kind.DELTA:
            held = state_digest(layout, base).hex() if base is not None else "nothing"
            if base is None or held != header.base_digest.hex():
                raise MismatchError(
                    "base-digest",
                    f"base_digest: {held[:16]}: must be {header.base_digest.hex()[:16]}, "
                    f"the state before version {header.version}",
                )
            state = add(base, decode_whole(codec_of(header), layout, envelope.sections))
            for name, value in state.items():
                if not np.isfinite(value).all():
                    raise PayloadError(f"delta: {name}: overflows the state: all values must be finite")
        case Kind.UPDATE | Kind.REPORT | Kind.FILE | Kind.CONSTANTS:
            raise HeaderError(f"header.kind: {header.kind.name}: must be SNAPSHOT or DELTA here")
    check_result(header, layout, state)
    return envelope, state


def check_result(header: Header, layout: Layout, state: Tensors) -> None:
    """Raise ``MismatchError`` unless these are the values that the sender reached."""
    reached = state_digest(layout, state)
    if reached != header.result_digest:
        what = f" for version {header.version}" if header.kind is not Kind.FILE else ""
        raise MismatchError(
            "result-digest",
            f"result_digest: {reached.hex()[:16]}: must be {header.result_digest.hex()[:16]}{what}",
        )
