"""Updates become envelopes, and come back: in memory, or chunk by chunk.

>>> import numpy as np
>>> from fedcompress import CodecSpec, Header, Kind, Layout, TensorSpec
>>> from fedcompress import decode_update, encode_update, state_digest
>>> layout = Layout((TensorSpec(name="w", shape=(4, 8), group="lora_a"),))
>>> update = {"w": np.linspace(-1, 1, 32, dtype=np.float32).reshape(4, 8)}
>>> base = {"w": np.zeros((4, 8), np.float32)}
>>> header = Header(kind=Kind.UPDATE, run="r", site="s", round=1, version=0, codec="",
...                 layout_digest=layout.digest, base_digest=state_digest(layout, base))
>>> data, decoded = encode_update(update, layout, CodecSpec.parse("topk(density=0.25)|ternary"), header)
>>> envelope, again = decode_update(data, layout)
>>> envelope.header.codec, int(np.count_nonzero(again["w"])), bool((again["w"] == decoded["w"]).all())
('topk(density=0.25)|ternary', 8, True)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from fedcompress.chunks import TensorSlice, collect_slices
from fedcompress.codecs import CodecSpec
from fedcompress.errors import HeaderError
from fedcompress.pipeline.coding import (
    OnEncoded,
    ReadChunk,
    decode_chunks,
    encode_body,
    open_envelope,
    parse_codec,
    read_from,
)
from fedcompress.types import Array, Layout, Tensors, to_arrays
from fedcompress.wire import Envelope, Header, Kind, Limits, pack


def encode_update(
    tensors: Mapping[str, Any],
    layout: Layout,
    codec: CodecSpec,
    header: Header,
    *,
    last: Mapping[str, Array] | None = None,
) -> tuple[bytes, Tensors]:
    """Encode an update, and return with it what the receiver will decode.

    ``header.codec`` and ``header.layout_digest`` are filled in. Randomness comes from run, site and
    round in the header, so that doing it again gives the same bytes.

    Args:
        tensors: the update by name, numpy arrays or torch tensors on any device.
        layout: its layout.
        codec: how to encode it.
        header: what else to say.
        last: the update sent before, as decoded, for codecs that start from it (``codec.uses_previous_update``).

    Returns:
        The envelope, and the float32 tensors that it decodes to.

    Raises:
        LayoutError: ``tensors`` does not have the layout.
        NonFiniteError: a value is NaN or infinite; names the tensor.
    """
    chunks: list[tuple[list[TensorSlice], Tensors]] = []
    data = stream_update(
        read_from(to_arrays(tensors), layout),
        layout,
        codec,
        header,
        lambda slices, _, decoded: chunks.append((slices, decoded)),
        last=last,
    )
    return data, collect_slices(layout, chunks)


def stream_update(
    read: ReadChunk,
    layout: Layout,
    codec: CodecSpec,
    header: Header,
    on_encoded: OnEncoded,
    *,
    last: Mapping[str, Array] | None = None,
) -> bytes:
    """Encode an update of which no more than a chunk is in memory; as ``encode_update`` otherwise.

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


def decode_update(data: bytes | Envelope, layout: Layout, limits: Limits | None = None) -> tuple[Envelope, Tensors]:
    """Check and decode an UPDATE or DELTA envelope.

    Args:
        data: the bytes of the envelope, or what they were unpacked to.
        layout: the receiver's own layout.
        limits: of the envelope's size; by default what the layout allows.

    Returns:
        The envelope, and the update's float32 tensors.

    Raises:
        WireError: the bytes are malformed; one subclass for each way.
        MismatchError: the envelope was made for another layout.
    """
    envelope = open_envelope(data, layout, limits)
    return envelope, collect_slices(layout, stream_decoded_update(envelope, layout))


def stream_decoded_update(data: bytes | Envelope, layout: Layout) -> Iterator[tuple[list[TensorSlice], Tensors]]:
    """Decode an UPDATE or DELTA envelope chunk by chunk; raises as ``decode_update``."""
    envelope = open_envelope(data, layout)
    if envelope.header.kind not in (Kind.UPDATE, Kind.DELTA):
        raise HeaderError(f"header.kind: {envelope.header.kind.name}: must be UPDATE or DELTA here")
    return decode_chunks(parse_codec(envelope.header), layout, envelope.sections)
