"""Where codecs meet the wire: updates and published states to envelopes and back.

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

from fedcompress.chunks import TensorSlice
from fedcompress.codecs import CodecSpec
from fedcompress.errors import HeaderError
from fedcompress.numerics.seeded_bases import shared_seed
from fedcompress.pipeline.coding import (
    Keep,
    Read,
    check_layout,
    codec_of,
    decode_parts,
    decode_whole,
    derive_seed,
    encode_parts,
    encode_whole,
)
from fedcompress.types import Array, Layout, Tensors, to_arrays
from fedcompress.wire import Envelope, Header, Kind, Limits, pack, unpack


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
        tensors: the update, numpy arrays or torch tensors on any device.
        layout: its layout.
        codec: how to encode it.
        header: what else to say.
        last: the update sent before, as decoded, for codecs that start from it (``codec.uses_previous_update``).

    Raises:
        LayoutError: ``tensors`` does not have the layout.
        NonFiniteError: a value is NaN or infinite; names the tensor.
    """
    sections = encode_whole(codec, layout, to_arrays(tensors), header, last)
    full = replace(header, codec=str(codec), layout_digest=layout.digest)
    return pack(full, sections), decode_whole(codec, layout, sections)


def decode_update(data: bytes, layout: Layout, limits: Limits | None = None) -> tuple[Envelope, Tensors]:
    """Check and decode an UPDATE or DELTA envelope.

    Raises:
        WireError: the bytes are malformed; one subclass for each way.
        MismatchError: the envelope was made for another layout.
    """
    envelope = unpack(data, limits or Limits.for_numel(layout.numel))
    check_layout(envelope.header, layout)
    if envelope.header.kind not in (Kind.UPDATE, Kind.DELTA):
        raise HeaderError(f"header.kind: {envelope.header.kind.name}: must be UPDATE or DELTA here")
    return envelope, decode_whole(codec_of(envelope.header), layout, envelope.sections)


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
    sections = encode_parts(codec, layout, read, seed=derive_seed(header), shared=shared, keep=keep)
    return pack(replace(header, codec=str(codec), layout_digest=layout.digest), sections)


def stream_changes(data: bytes, layout: Layout) -> Iterator[tuple[list[TensorSlice], Tensors]]:
    """What an UPDATE or DELTA envelope adds, part by part; raises as ``decode_update``."""
    envelope = unpack(data, Limits.for_numel(layout.numel))
    check_layout(envelope.header, layout)
    if envelope.header.kind not in (Kind.UPDATE, Kind.DELTA):
        raise HeaderError(f"header.kind: {envelope.header.kind.name}: must be UPDATE or DELTA here")
    return decode_parts(codec_of(envelope.header), layout, envelope.sections)
