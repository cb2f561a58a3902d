"""What the golden files hold: an envelope for each row of CODECS, two for the range coder, a seeded snapshot."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedcompress.adapters import seeded_init
from fedcompress.codecs import CODECS, CodecSpec
from fedcompress.pipeline import encode_snapshot, encode_update
from fedcompress.types import Layout, Tensors, TensorSpec, zeros
from tests.support import lora_layout, update_header

LAYOUT = lora_layout(modules=1, rank=2, width=10, labels=2)
# Long enough, and its values skewed enough, that the range coder beats the packed one in every stream.
LONG = lora_layout(modules=1, rank=4, width=120, labels=4)
RANGE_SPECS = {
    "range-masks.v1.fcu": "lora: topk(density=0.05)|int(bits=3); head: topk(density=0.02,scope=global)|ternary",
    "range-symbols.v1.fcu": "lora: int(bits=4); head: int(bits=6,block=160)",
}
SEEDED = Layout((TensorSpec(name="m.lora_A.weight", shape=(2, 3), group="lora_a"),))


def values() -> Tensors:
    """Values by integer arithmetic, so that they never change."""
    out = {}
    for number, spec in enumerate(LAYOUT.tensors):
        steps = (np.arange(spec.numel, dtype=np.int64) * 2654435761 + 97 * number) % 2001 - 1000
        out[spec.name] = (steps.astype(np.float32) / np.float32(256)).reshape(spec.shape)
    return out


def skewed() -> Tensors:
    """Values of ``LONG`` by integer arithmetic: many small ones, few large ones."""
    out = {}
    for number, spec in enumerate(LONG.tensors):
        steps = (np.arange(spec.numel, dtype=np.int64) * 2654435761 + 97 * number) % 201 - 100
        out[spec.name] = ((steps**5).astype(np.float64) / 2.0**33).astype(np.float32).reshape(spec.shape)
    return out


def layout_of(name: str) -> Layout:
    """Layout of a golden update."""
    return LONG if name in RANGE_SPECS else LAYOUT


def cases() -> Iterator[tuple[str, bytes]]:
    """File name and bytes."""
    for name, row in CODECS.items():
        spec = f"{name}(density=0.25)|none" if row.kind == "select" else row.spec or name
        header = update_header(LAYOUT, zeros(LAYOUT), metrics={"eval_examples": 2.0})
        yield f"{name}.v1.fcu", encode_update(values(), LAYOUT, CodecSpec.parse(spec), header)[0]
    for name, spec in RANGE_SPECS.items():
        yield name, encode_update(skewed(), LONG, CodecSpec.parse(spec), update_header(LONG, zeros(LONG)))[0]
    yield "snapshot-seed.v1.fcu", encode_snapshot(seeded_init(SEEDED, 7), SEEDED, run="run", version=0, init_seed=7)
