"""A layout that is cut into slices, for tests that compare slice by slice with at once."""

from __future__ import annotations

import numpy as np

from fedcompress.types import Layout, Tensors, TensorSpec
from fedcompress.wire import Header, Kind, Limits

LAYOUT = Layout(
    (
        TensorSpec(name="embed", shape=(50, 12)),
        TensorSpec(name="norm", shape=(12,), group="head"),
        TensorSpec(name="q", shape=(24, 12)),
        TensorSpec(name="scalar", shape=(), group="head"),
        TensorSpec(name="up", shape=(7, 40)),
    )
)


LIMITS = Limits.for_numel(LAYOUT.numel)


SPARSE = "topk(density=0.1)|ternary; head: none"


CODECS = ("none", "int8", SPARSE, "subspace(rank=3)", "subspace(rank=3,basis=dct,bits=8)")


def normal(seed: int) -> Tensors:
    generator = np.random.default_rng(seed)
    return {t.name: generator.normal(size=t.shape).astype(np.float32).reshape(t.shape) for t in LAYOUT.tensors}


def header(kind: Kind = Kind.UPDATE, **fields: object) -> Header:
    known = {"run": "r", "site": "s", "round": 1, "version": 0, "codec": "", "layout_digest": LAYOUT.digest}
    return Header(kind=kind, **{**known, "base_digest": b"\1" * 32, "result_digest": b"\1" * 32, **fields})  # type: ignore[arg-type]


def equal(left: object, right: Tensors) -> bool:
    return all(np.array_equal(left[n], v) and left[n].shape == v.shape for n, v in right.items())  # type: ignore[index]
