"""Encodes and decodes updates chunk by chunk: what is in memory is bounded by a chunk, not by the update.

An envelope of a layout with more than ``ROUND_CHUNK_ENTRIES`` entries has the sections of all clauses for the first
chunk, then for the second, and so on. The chunks follow from the receiver's own layout. Updates and states that are in
memory go the same way, with a source and a sink in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from fedcompress.chunks import ROUND_CHUNK_ENTRIES, TensorSlice, layout_of_slices, read_slices, split_layout
from fedcompress.codecs import Clause, CodecSpec, decode_sections, encode_sections
from fedcompress.codecs.transform.code import Transform
from fedcompress.errors import ConfigError, HeaderError, MismatchError, PayloadError
from fedcompress.numerics.philox import hash_seed
from fedcompress.numerics.seeded_bases import shared_seed
from fedcompress.types import Array, Layout, Tensors
from fedcompress.wire import Envelope, Header, Kind, Limits, pack, unpack

# Returns the values of a chunk by tensor name: float32 and finite, in the order of the slices.
ReadChunk = Callable[[list[TensorSlice]], Tensors]
# Is given each chunk: its slices, the values that were encoded, and those that every receiver will decode.
OnEncoded = Callable[[list[TensorSlice], Tensors, Tensors], None]


def encode_chunks(
    codec: CodecSpec,
    layout: Layout,
    read: ReadChunk,
    *,
    seed: int = 0,
    shared: int = 0,
    last: Mapping[str, Array] | None = None,
    on_encoded: OnEncoded | None = None,
) -> tuple[bytes, ...]:
    """Encode all chunks of a layout.

    Args:
        codec: how to encode each chunk; a budget in bytes is shared among them by number of parameters.
        layout: the whole layout.
        read: gives the values of a chunk.
        seed: the sender's seed of all randomness, 63 bits; each chunk has one of its own that follows from it.
        shared: a seed that all senders of a run have in a round; see ``EncoderHints``.
        last: the update that was sent before, as decoded, for codecs that start from it.
        on_encoded: is told of each chunk; decoding it costs time only where somebody asks.

    Returns:
        The sections of the envelope's body, in order.

    Raises:
        NonFiniteError: a value is NaN or infinite; names the tensor.
    """
    sections: list[bytes] = []
    for number, slices in enumerate(split_layout(layout, ROUND_CHUNK_ENTRIES)):
        chunk_layout, values = layout_of_slices(slices), read(slices)
        chunk_codec = share_budget(codec, layout, chunk_layout)
        before = read_slices(last, slices) if last is not None else None
        chunk_seed = _chunk_seed(seed, number)
        encoded = encode_sections(chunk_codec, chunk_layout, values, seed=chunk_seed, shared=shared, last=before)
        sections += encoded
        if on_encoded is not None:
            on_encoded(slices, values, decode_sections(chunk_codec, chunk_layout, encoded))
    return tuple(sections)


def decode_chunks(
    codec: CodecSpec, layout: Layout, sections: Sequence[bytes]
) -> Iterator[tuple[list[TensorSlice], Tensors]]:
    """Decode the sections of an envelope, chunk by chunk.

    Args:
        codec: the codec that the header names.
        layout: the receiver's own layout.
        sections: the envelope's sections, in order.

    Yields:
        The slices of each chunk and their float32 values, in the order of the layout.

    Raises:
        PayloadError: a section does not decode, or there are too few or too many.
    """
    chunks, clauses = split_layout(layout, ROUND_CHUNK_ENTRIES), len(codec.clauses)
    if len(sections) != clauses * len(chunks):
        needed = f"the codec {codec} has {clauses} for each of {len(chunks)} parts"
        raise PayloadError(f"sections: {len(sections)}: must be {clauses * len(chunks)}: {needed}")
    for number, slices in enumerate(chunks):
        chunk_layout = layout_of_slices(slices)
        try:
            chunk_codec = share_budget(codec, layout, chunk_layout)
        except ConfigError as error:
            raise PayloadError(f"sections: the codec does not fit the layout: {error}") from error
        yield slices, decode_sections(chunk_codec, chunk_layout, sections[clauses * number : clauses * (number + 1)])


def _chunk_seed(seed: int, number: int) -> int:
    """Return 63 bits for a chunk; the first has the sender's seed itself."""
    if not number:
        return seed
    return hash_seed(seed, "part", number)


def share_budget(codec: CodecSpec, layout: Layout, chunk_layout: Layout) -> CodecSpec:
    """Return the codec for a chunk: a budget in bytes is shared by number of parameters.

    Args:
        codec: the codec of the whole.
        layout: the layout of the whole.
        chunk_layout: the layout of the chunk.

    Returns:
        ``codec`` itself if the chunk is the whole, or no clause has a budget in bytes.

    Raises:
        ConfigError: a tensor's group has no clause.
    """
    if chunk_layout.numel == layout.numel:
        return codec
    clauses = []
    for clause, members, chunk_members in zip(
        codec.clauses, codec.assign(layout), codec.assign(chunk_layout), strict=True
    ):
        code = clause.code
        # the same for one parameter and for two: a budget in bytes, and not in bits a parameter
        if isinstance(code, Transform) and code.budget and code.bits(1) == code.bits(2):
            numel = sum(t.numel for t in members)
            chunk_numel = sum(t.numel for t in chunk_members)
            if chunk_numel < numel:
                size = max(int(code.bits(1) / 8 * chunk_numel / numel), 1)
                clause = Clause(clause.groups, replace(code, budget=f"{size}B"))
        clauses.append(clause)
    return CodecSpec(tuple(clauses))


def encode_body(
    codec: CodecSpec,
    layout: Layout,
    read: ReadChunk,
    header: Header,
    *,
    last: Mapping[str, Array] | None = None,
    on_encoded: OnEncoded | None = None,
) -> tuple[bytes, ...]:
    """Encode all chunks with the randomness that a header fixes, so that doing it again gives the same bytes.

    Args:
        codec: see ``encode_chunks``, as for all but the header.
        layout: the whole layout.
        read: gives the values of a chunk.
        header: its run, site and round give the seeds.
        last: the update that was sent before, as decoded.
        on_encoded: is told of each chunk.

    Returns:
        The sections of the envelope's body, in order.
    """
    seed, shared = derive_sender_seed(header), shared_seed(header.run, header.round)
    return encode_chunks(codec, layout, read, seed=seed, shared=shared, last=last, on_encoded=on_encoded)


def stream_update(
    read: ReadChunk,
    layout: Layout,
    codec: CodecSpec,
    header: Header,
    on_encoded: OnEncoded,
    *,
    last: Mapping[str, Array] | None = None,
) -> bytes:
    """Encode an update of which no more than a chunk is in memory, and return the envelope.

    Args:
        read: gives the values of a chunk.
        layout: the update's layout.
        codec: how to encode it.
        header: what else to say; codec and layout digest are filled in.
        on_encoded: is told of each chunk what was encoded, and what the receiver will decode.
        last: the update sent before, as decoded, for codecs that start from it.

    Returns:
        The envelope.

    Raises:
        NonFiniteError: a value is NaN or infinite; names the tensor.
    """
    sections = encode_body(codec, layout, read, header, last=last, on_encoded=on_encoded)
    return pack(replace(header, codec=str(codec), layout_digest=layout.digest), sections)


def stream_decoded_update(data: bytes | Envelope, layout: Layout) -> Iterator[tuple[list[TensorSlice], Tensors]]:
    """Decode an UPDATE or DELTA envelope chunk by chunk; raises as ``open_envelope``."""
    envelope = open_envelope(data, layout)
    if envelope.header.kind not in (Kind.UPDATE, Kind.DELTA):
        raise HeaderError(f"header.kind: {envelope.header.kind.name}: must be UPDATE or DELTA here")
    return decode_chunks(parse_codec(envelope.header), layout, envelope.sections)


def derive_sender_seed(header: Header) -> int:
    """Return 63 bits from run, site and round: a sender never draws the same randomness twice."""
    return hash_seed(header.run, header.site, header.round)


def read_from(tensors: Mapping[str, Array], layout: Layout) -> ReadChunk:
    """Return what reads the chunks of tensors in memory.

    Raises:
        LayoutError: the tensors do not have the layout; their values are looked at when they are encoded.
    """
    layout.check_shapes(tensors, what="encode")
    return lambda slices: read_slices(tensors, slices)


def open_envelope(data: bytes | Envelope, layout: Layout, limits: Limits | None = None) -> Envelope:
    """Check an envelope and the layout that it is for; one that was checked before is not hashed again.

    Args:
        data: the bytes of one envelope, or the envelope that they were unpacked to.
        layout: the receiver's own layout.
        limits: of the envelope's size; by default what the layout allows.

    Returns:
        Header, sections and digest.

    Raises:
        WireError: the bytes are malformed; one subclass for each way.
        MismatchError: the envelope was made for another layout.
    """
    envelope = data if isinstance(data, Envelope) else unpack(data, limits or Limits.for_numel(layout.numel))
    check_layout(envelope.header, layout)
    return envelope


def check_layout(header: Header, layout: Layout) -> None:
    """Raise ``MismatchError`` unless the header names this layout."""
    if header.layout_digest != layout.digest:
        raise MismatchError(
            "layout-mismatch",
            f"layout_digest: {header.layout_digest.hex()[:16]}: must be {layout.digest.hex()[:16]}, "
            f"the receiver's own layout of {len(layout.tensors)} tensors",
        )


def parse_codec(header: Header) -> CodecSpec:
    """Parse the codec that a header names.

    Raises:
        HeaderError: it does not parse.
    """
    try:
        return CodecSpec.parse(header.codec, field="header.codec")
    except ConfigError as error:
        raise HeaderError(str(error)) from error
