"""Admission checks every reply before it is merged; the codes of its refusals are listed here."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedcompress.codecs import CodecSpec
from fedcompress.errors import AdmissionError, ConfigError, MismatchError, WireError
from fedcompress.merging.weighting import Processed, Weighting
from fedcompress.pipeline.coding import decode_chunks, parse_codec
from fedcompress.types import Layout, Tensors
from fedcompress.wire import Envelope, Header, Kind, Limits, unpack
from server.round import signatures
from server.round.signatures import SignaturePolicy
from server.round.weighting import STEPS_DONE, compute_site_weights

# metrics that count some of what another metric counts
PARTS = {"eval_correct": "eval_examples", "alone_correct": "eval_examples", "eval_exact": "eval_rows"}
NEVER_NEGATIVE = (
    "eval_examples",
    "eval_rows",
    "eval_loss_sum",
    "train_loss",
    "seconds_load",
    "seconds_evaluate",
    "seconds_train",
    STEPS_DONE,
)
MAX_CLAIM = 1 << 53  # largest count and metric that a site may claim: sums of it stay exact, and fit into the ledger
WriteUpdate = Callable[[str, Iterable[Tensors]], Any]

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
    "weight": "lacks what weighs it: steps, a train_loss above 0, and not so small that it alone counts, or a weight",
    "examples": "claims no training examples, or more than there can be",
    "metrics": "a measured value is larger or smaller than any can be",
    "duplicate-site": "another node has answered for this site, in this round or since this node was asked",
    "no-site": "does not say which site it is from",
    **signatures.REASONS,
}


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Says what the header of a reply must have to be admitted.

    Attributes:
        run: name of the run.
        round: number of the round that the site was asked in.
        base_digest: state digest of the version that it was to train from, 32 bytes.
        layout: of the adapter.
        adapter_digest: digest of PEFT's config, 32 bytes.
        base_fingerprint: of the base model, 32 bytes; empty: not known yet, any is taken.
        codec: of updates, as the run config has it.
        steps: that the site was to make.
        batch_size: examples in a step.
        weighting: how updates are weighed, and so what an update must report.
        signatures: which signatures count; None looks at none.
    """

    run: str
    round: int
    base_digest: bytes
    layout: Layout
    adapter_digest: bytes
    base_fingerprint: bytes
    codec: str
    steps: int
    batch_size: int
    weighting: Weighting = field(default_factory=Processed)
    signatures: SignaturePolicy | None = None


def check_header(header: Header, expected: Expected, kind: Kind, seen: set[str]) -> None:
    """Raise ``AdmissionError`` unless the header is what was asked for.

    Args:
        header: of the reply.
        expected: what it must say.
        kind: the kind of envelope that was asked for.
        seen: names of the sites that have answered already.

    Raises:
        AdmissionError: with a code of ``REASONS``.
    """
    _check_origin(header, expected, kind)
    if not header.site:
        raise AdmissionError("no-site", f"site: '': {REASONS['no-site']}")
    if header.site in seen:
        raise AdmissionError("duplicate-site", f"site: {header.site}: {REASONS['duplicate-site']}")
    if (kind is Kind.UPDATE and not header.examples) or header.examples > MAX_CLAIM:
        raise AdmissionError("examples", f"examples: {header.examples}: {REASONS['examples']}")
    _check_metrics(header.metrics, expected.steps)
    if kind is Kind.UPDATE:
        _check_weight(header, expected)


def _check_origin(header: Header, expected: Expected, kind: Kind) -> None:
    """Raise ``AdmissionError`` unless the reply answers the task that was sent, with the same adapter and base."""
    codec = str(CodecSpec.parse(expected.codec))
    for code, actual, required in (
        ("kind", header.kind.name, kind.name),
        ("run", header.run, expected.run),
        ("round", header.round, expected.round),
        ("layout-mismatch", header.layout_digest.hex(), expected.layout.digest.hex()),
        ("base-digest", header.base_digest.hex(), expected.base_digest.hex()),
        ("adapter", header.adapter_digest.hex(), expected.adapter_digest.hex()),
        ("codec", header.codec if kind is Kind.UPDATE else codec, codec),
    ):
        if actual != required:
            raise AdmissionError(code, f"{code}: {actual}: must be {required}: {REASONS[code]}")
    if expected.base_fingerprint and header.base_fingerprint != expected.base_fingerprint:
        base = header.base_fingerprint.hex()[:16]
        rule = f"must be {expected.base_fingerprint.hex()[:16]}: {REASONS['base-model']}"
        raise AdmissionError("base-model", f"base_fingerprint: {base}: {rule}")


def _check_metrics(metrics: Mapping[str, float], steps: int) -> None:
    """Raise ``AdmissionError`` unless each metric is in its range; the names of those that are counts say of what."""
    for name, value in metrics.items():
        largest = metrics.get(PARTS[name], 0.0) if name in PARTS else steps if name == STEPS_DONE else MAX_CLAIM
        smallest = 0 if name in PARTS or name in NEVER_NEGATIVE else -MAX_CLAIM
        if not smallest <= value <= largest:
            rule = f"must be from {smallest} to {largest:.9g}: {REASONS['metrics']}"
            raise AdmissionError("metrics", f"metrics.{name}: {value:.9g}: {rule}")


def _check_weight(header: Header, expected: Expected) -> None:
    """Raise ``AdmissionError`` if the update could not be weighed in the merge, which would fail for all updates."""
    try:
        compute_site_weights(expected.weighting, [header], steps=expected.steps, batch_size=expected.batch_size)
    except ConfigError as error:
        raise AdmissionError("weight", f"weight: {header.site}: {REASONS['weight']}: {error}") from error


def admit_reply(
    data: bytes,
    expected: Expected,
    kind: Kind,
    seen: set[str],
    claimed: str = "",
    keep: WriteUpdate = lambda name, parts: deque(parts, 0),
) -> tuple[Envelope, float]:
    """Check a reply in full, its signature first.

    Args:
        data: the packed envelope.
        expected: what its header must say.
        kind: the kind of envelope that was asked for.
        seen: names of the sites that have answered already.
        claimed: the site that the reply says to be from, beside the envelope.
        keep: is given the update's digest in hex, and its tensors, which it must draw, part by part.

    Returns:
        The envelope, and the Euclidean norm of the update, which is 0 for a report.

    Raises:
        AdmissionError: with a code of ``REASONS``.
    """
    limits = Limits.for_numel(expected.layout.numel)
    policy = expected.signatures
    try:
        signer = policy.find_signer(data, limits, claimed) if policy is not None else None
        envelope = unpack(data, limits)
        if policy is not None:
            policy.check_site(signer, envelope.header.site)
        check_header(envelope.header, expected, kind, seen)
        if kind is Kind.REPORT:
            return envelope, 0.0
        squares: list[float] = []
        keep(envelope.digest.hex(), _decode_and_measure(envelope, expected.layout, squares))
        return envelope, math.sqrt(math.fsum(squares))
    except WireError as error:
        raise AdmissionError("malformed", f"{type(error).__name__}: {error}") from error
    except MismatchError as error:
        raise AdmissionError(error.code, str(error)) from error


def _decode_and_measure(envelope: Envelope, layout: Layout, squares: list[float]) -> Iterator[Tensors]:
    """Yield the decoded tensors part by part, and append the sum of squares of each to ``squares``."""
    for _, tensors in decode_chunks(parse_codec(envelope.header), layout, envelope.sections):
        squares += [float(np.square(value, dtype=np.float64).sum()) for value in tensors.values()]
        yield tensors
