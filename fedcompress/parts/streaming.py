"""``pipeline`` for tensors that are not in memory together: updates and states, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from fedcompress.adapters.init import seeded_init
from fedcompress.codecs import CodecSpec
from fedcompress.errors import HeaderError, MismatchError, PayloadError
from fedcompress.parts import ROUND_PART, Piece, cut, layout_of, values_of
from fedcompress.parts.coding import Keep, Read, decode_parts, encode_parts
from fedcompress.parts.stored import Digest, digest_of
from fedcompress.pipeline import check_layout, codec_of, seed_of
from fedcompress.subspaces import shared_seed
from fedcompress.types import Array, Layout, Tensors, add
from fedcompress.wire import Envelope, Header, Kind, Limits, pack, unpack

KeepReached = Callable[[Piece, Array, Array, Array], None]


def stream_update(read: Read, layout: Layout, codec: CodecSpec, header: Header, keep: Keep) -> bytes:
    """An UPDATE envelope; digests and codec in the header are filled in.

    Args:
        read: values of a part.
        layout: of the whole.
        codec: how to encode it.
        header: what else to say.
        keep: is given each part, what was encoded and what the receiver will decode.

    Raises:
        NonFiniteError: a value is NaN or infinite; names the tensor.
    """
    shared = shared_seed(header.run, header.round)
    sections = encode_parts(codec, layout, read, seed=seed_of(header), shared=shared, keep=keep)
    return pack(replace(header, codec=str(codec), layout_digest=layout.digest), sections)


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
    before, after = Digest(layout), Digest(layout)

    def reach(pieces: list[Piece], wanted: Tensors, decoded: Tensors) -> None:
        for piece in pieces:
            name = piece.spec.name
            (start,) = values_of(base, [piece]).values()
            reached = add({name: start}, decoded)
            layout_of([piece]).check(reached, what="encode_delta: state reached")
            before.update({name: start})
            after.update(reached)
            keep(piece, wanted[name], decoded[name], reached[name])

    shared = shared_seed(header.run, header.round)
    sections = encode_parts(codec, layout, read, seed=seed_of(header), shared=shared, keep=reach)
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
    header, digest = envelope.header, Digest(layout)
    check_layout(header, layout)
    for values in _parts(envelope, layout, base):
        digest.update(values)
        yield values
    reached = digest.digest()
    if reached != header.result_digest:
        rule = f"must be {header.result_digest.hex()[:16]} for version {header.version}"
        raise MismatchError("result-digest", f"result_digest: {reached.hex()[:16]}: {rule}")


def stream_changes(data: bytes, layout: Layout) -> Iterator[tuple[list[Piece], Tensors]]:
    """What an UPDATE or DELTA envelope adds, part by part; raises as ``decode_update``."""
    envelope = unpack(data, Limits.for_numel(layout.numel))
    check_layout(envelope.header, layout)
    if envelope.header.kind not in (Kind.UPDATE, Kind.DELTA):
        raise HeaderError(f"header.kind: {envelope.header.kind.name}: must be UPDATE or DELTA here")
    return decode_parts(codec_of(envelope.header), layout, envelope.sections)


def _parts(envelope: Envelope, layout: Layout, base: Mapping[str, Array] | None) -> Iterator[Tensors]:
    header = envelope.header
    match header.kind:
        case Kind.SNAPSHOT if header.init_seed is not None:
            if envelope.sections:
                raise PayloadError("snapshot: has both a seed and sections: must have one of them")
            if any(t.group == "lora_a" for t in layout.tensors):
                raise PayloadError("snapshot: a seed: full weights start from zero")
            for pieces in cut(layout, ROUND_PART):
                yield seeded_init(layout_of(pieces), header.init_seed)
        case Kind.SNAPSHOT:
            for _, values in decode_parts(codec_of(header), layout, envelope.sections):
                yield values
        case Kind.DELTA:
            _check_start(header, layout, base)
            assert base is not None
            for pieces, change in decode_parts(codec_of(header), layout, envelope.sections):
                reached = add(values_of(base, pieces), change)
                for name, value in reached.items():
                    if not np.isfinite(value).all():
                        raise PayloadError(f"delta: {name}: overflows the state: all values must be finite")
                yield reached
        case _:
            raise HeaderError(f"header.kind: {header.kind.name}: must be SNAPSHOT or DELTA here")


def _check_start(header: Header, layout: Layout, base: Mapping[str, Array] | None) -> None:
    held = digest_of(layout, base).hex() if base is not None else "nothing"
    if held != header.base_digest.hex():
        rule = f"must be {header.base_digest.hex()[:16]}, the state before version {header.version}"
        raise MismatchError("base-digest", f"base_digest: {held[:16]}: {rule}")
