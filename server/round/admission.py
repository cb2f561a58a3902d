"""What the coordinator refuses, and why. Every refusal has a reason code."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedcompress.codecs import CodecSpec
from fedcompress.errors import AdmissionError, ConfigError, MismatchError, WireError
from fedcompress.merging.weighting import Examples, Weighting
from fedcompress.pipeline.coding import codec_of, decode_parts
from fedcompress.types import Layout, Tensors
from fedcompress.wire import Envelope, Header, Kind, Limits, unpack
from server.round import signatures
from server.round.signatures import SignaturePolicy
from server.round.weighting import compute_site_weights

MAX_CLAIM = 1 << 53  # of what sites count and measure: sums of it stay exact, and fit into the ledger
Keep = Callable[[str, Iterable[Tensors]], Any]

REASONS: dict[str, str] = {
    "malformed": "the bytes are not a valid envelope",
    "kind": "not the kind of message that was asked for",
    "run": "made for another run",
    "round": "made for another round",
    "base-digest": "trained from another published state",
    "layout-mismatch": "made for another layout",
    "base-model": "trained on another base model",
    "adapter": "trained with another adapter config",
    "codec": "coded otherwise than was asked",
    "weight": "lacks what weighs it: a train_loss above 0, and not so small that it alone counts, or a listed weight",
    "examples": "claims no training examples, or more than there can be",
    "metrics": "a measured value is larger than any can be",
    "duplicate-site": "another node has answered for this site, in this round or since this node was asked",
    "no-site": "does not say which site it is from",
    **signatures.REASONS,
}


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a reply of this round must say."""

    run: str
    round: int
    base_digest: bytes
    layout: Layout
    adapter_digest: bytes
    base_fingerprint: bytes  # empty: not known yet, any is taken
    codec: str
    weighting: Weighting = field(default_factory=Examples)
    trust: SignaturePolicy | None = None  # None: signatures are not looked at


def check_header(header: Header, expected: Expected, kind: Kind, seen: set[str]) -> None:
    """Raise ``AdmissionError`` unless the header is what was asked for."""
    codec = str(CodecSpec.parse(expected.codec))
    for code, found, wanted in (
        ("kind", header.kind.name, kind.name),
        ("run", header.run, expected.run),
        ("round", header.round, expected.round),
        ("layout-mismatch", header.layout_digest.hex(), expected.layout.digest.hex()),
        ("base-digest", header.base_digest.hex(), expected.base_digest.hex()),
        ("adapter", header.adapter_digest.hex(), expected.adapter_digest.hex()),
        ("codec", header.codec if kind is Kind.UPDATE else codec, codec),
    ):
        if found != wanted:
            raise AdmissionError(code, f"{code}: {found}: must be {wanted}: {REASONS[code]}")
    if expected.base_fingerprint and header.base_fingerprint != expected.base_fingerprint:
        found, wanted = header.base_fingerprint.hex()[:16], expected.base_fingerprint.hex()[:16]
        raise AdmissionError("base-model", f"base_fingerprint: {found}: must be {wanted}: {REASONS['base-model']}")
    if not header.site:
        raise AdmissionError("no-site", f"site: '': {REASONS['no-site']}")
    if header.site in seen:
        raise AdmissionError("duplicate-site", f"site: {header.site}: {REASONS['duplicate-site']}")
    if (kind is Kind.UPDATE and not header.examples) or header.examples > MAX_CLAIM:
        raise AdmissionError("examples", f"examples: {header.examples}: {REASONS['examples']}")
    for name, value in header.metrics.items():
        if abs(value) > MAX_CLAIM:
            raise AdmissionError("metrics", f"metrics.{name}: {value}: {REASONS['metrics']}")
    if kind is Kind.UPDATE:
        try:
            compute_site_weights(expected.weighting, [header])
        except ConfigError as error:
            raise AdmissionError("weight", f"weight: {header.site}: {REASONS['weight']}: {error}") from error


def admit_reply(
    data: bytes,
    expected: Expected,
    kind: Kind,
    seen: set[str],
    claimed: str = "",
    keep: Keep = lambda name, parts: deque(parts, 0),
) -> tuple[Envelope, float]:
    """Check a reply in full, its signature first.

    Args:
        data: the envelope.
        expected: what it must say.
        kind: what was asked for.
        seen: sites that have answered already.
        claimed: the site that it came from, by what is said beside the envelope.
        keep: is given the update's digest in hex, and its values, which it must draw, part by part.

    Returns:
        The envelope, and the update's Euclidean norm; 0 for a REPORT.

    Raises:
        AdmissionError: with a code of ``REASONS``.
    """
    limits, whose = Limits.for_numel(expected.layout.numel), expected.trust
    try:
        signer = whose.signer(data, limits, claimed) if whose is not None else None
        envelope = unpack(data, limits)
        if whose is not None:
            whose.check_site(signer, envelope.header.site)
        check_header(envelope.header, expected, kind, seen)
        if kind is Kind.REPORT:
            return envelope, 0.0
        squares: list[float] = []
        keep(envelope.digest.hex(), _measured(envelope, expected.layout, squares))
        return envelope, math.sqrt(math.fsum(squares))
    except WireError as error:
        raise AdmissionError("malformed", f"{type(error).__name__}: {error}") from error
    except MismatchError as error:
        raise AdmissionError(error.code, str(error)) from error


def _measured(envelope: Envelope, layout: Layout, squares: list[float]) -> Iterator[Tensors]:
    """Values part by part; the sum of squares of each tensor is appended."""
    for _, values in decode_parts(codec_of(envelope.header), layout, envelope.sections):
        squares += [float(np.square(value, dtype=np.float64).sum()) for value in values.values()]
        yield values
