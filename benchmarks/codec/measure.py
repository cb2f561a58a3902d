"""What several parts measure."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fedcompress.codecs import CodecSpec
from fedcompress.pipeline.updates import encode_update
from fedcompress.types import Array, Layout, Tensors, TensorSpec, state_digest, zeros
from fedcompress.wire import Header, Kind


def entropy(p: float) -> float:
    """Bits of a coin."""
    return 0.0 if p in (0, 1) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def sparse_bound(p: float) -> float:
    """Bits an entry of a ternary tensor of one density with random signs."""
    return entropy(p) + p


def one_tensor(values: Array) -> tuple[Layout, Tensors]:
    """A layout of one tensor, and it."""
    return Layout((TensorSpec(name="w", shape=values.shape),)), {"w": values}


def header_for(layout: Layout) -> Header:
    """A header as a site would fill it in, without metrics."""
    digest = state_digest(layout, zeros(layout)) if layout.numel < 1 << 22 else b"\0" * 32
    return Header(
        kind=Kind.UPDATE,
        run="run",
        site="site",
        round=1,
        version=0,
        codec="",
        layout_digest=layout.digest,
        base_digest=digest,
        examples=1,
    )


def encoded(spec: str, layout: Layout, tensors: Mapping[str, Array]) -> tuple[bytes, Tensors]:
    """The whole file, and what it decodes to."""
    return encode_update(tensors, layout, CodecSpec.parse(spec), header_for(layout))


def captured(tensors: Mapping[str, Array], decoded: Mapping[str, Array]) -> float:
    """Share of the energy that arrives: ``1 - |x - C(x)|^2 / |x|^2``."""
    error = sum(float(np.square(tensors[n].astype(np.float64) - decoded[n]).sum()) for n in tensors)
    return 1 - error / sum(float(np.square(v, dtype=np.float64).sum()) for v in tensors.values())
