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

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fedcompress.adapters.init import seeded_init
from fedcompress.adapters.template import constants_digest, load_constants
from fedcompress.codecs import CodecSpec
from fedcompress.errors import ConfigError, HeaderError, MismatchError, PayloadError, StateError
from fedcompress.parts import values_of
from fedcompress.parts.coding import decode_whole, encode_parts
from fedcompress.subspaces import shared_seed
from fedcompress.types import Array, Layout, Tensors, add, state_digest, to_arrays
from fedcompress.wire import Envelope, Header, Kind, Limits, pack, unpack


def seed_of(header: Header) -> int:
    """63 bits from run, site and round: a sender never draws the same randomness twice."""
    text = f"{header.run}/{header.site}/{header.round}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def _sections(
    codec: CodecSpec,
    layout: Layout,
    values: Mapping[str, Array],
    header: Header,
    last: Mapping[str, Array] | None,
) -> tuple[bytes, ...]:
    """Of values in memory."""
    layout.check_shapes(values, what="encode")  # parts are cut from them; their values are looked at there
    seed, shared = seed_of(header), shared_seed(header.run, header.round)
    return encode_parts(codec, layout, lambda pieces: values_of(values, pieces), seed=seed, shared=shared, last=last)


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
        last: the update sent before, as decoded, for codecs that start from it (``codec.warm``).

    Raises:
        LayoutError: ``tensors`` does not have the layout.
        NonFiniteError: a value is NaN or infinite; names the tensor.
    """
    sections = _sections(codec, layout, to_arrays(tensors), header, last)
    full = replace(header, codec=str(codec), layout_digest=layout.digest)
    return pack(full, sections), decode_whole(codec, layout, sections)


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
    sections = _sections(codec, layout, change, header, last)
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


def check_layout(header: Header, layout: Layout) -> None:
    """Raise ``MismatchError`` unless the header names this layout."""
    if header.layout_digest != layout.digest:
        raise MismatchError(
            "layout-mismatch",
            f"layout_digest: {header.layout_digest.hex()[:16]}: must be {layout.digest.hex()[:16]}, "
            f"the receiver's own layout of {len(layout.tensors)} tensors",
        )


def codec_of(header: Header) -> CodecSpec:
    """The codec that a header names.

    Raises:
        HeaderError: it does not parse.
    """
    try:
        return CodecSpec.parse(header.codec, field="header.codec")
    except ConfigError as error:
        raise HeaderError(str(error)) from error


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
    return pack(replace(full, codec=str(spec)), _sections(spec, layout, state, full, None))


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
