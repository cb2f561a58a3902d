"""Updates in memory become envelopes, and come back.

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

from collections.abc import Mapping
from typing import Any

from fedcompress.chunks import TensorSlice, collect_slices
from fedcompress.codecs import CodecSpec
from fedcompress.pipeline.coding import open_envelope, read_from, stream_decoded_update, stream_update
from fedcompress.types import Array, Layout, Tensors, to_arrays
from fedcompress.wire import Envelope, Header, Limits


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
