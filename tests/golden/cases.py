"""What the golden files hold: an envelope for each row of CODECS, some for its coders, a snapshot, and a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedcompress.adapters import save_adapter, seeded_init
from fedcompress.codecs import CODECS, CodecSpec, sample_spec
from fedcompress.files import encode_file
from fedcompress.identity import PrivateKey
from fedcompress.pipeline.states import encode_snapshot
from fedcompress.pipeline.updates import encode_update
from fedcompress.types import Layout, Tensors, TensorSpec, zeros
from fedcompress.wire import sign_envelope
from tests.support import lora_layout, normal, update_header

LAYOUT = lora_layout(modules=1, rank=2, width=10, labels=2)
# Long enough, and its values skewed enough, that the range coder beats the packed one in every stream.
LONG = lora_layout(modules=1, rank=4, width=120, labels=4)
CODED_SPECS = {
    "coded-gaps.v2.fcu": "lora: topk(density=0.05)|int(bits=3); head: topk(density=0.02,scope=global)|ternary",
    "coded-symbols.v2.fcu": "lora: int(bits=4); head: int(bits=6,block=160)",
    "coded-columns.v2.fcu": "lora: topk(density=0.1)|ternary; head: transform(budget=1.5)",
    "coded-signs.v2.fcu": "lora: ternary; head: compeft",
    "coded-wide.v2.fcu": "transform(budget=9)",
    "coded-rows.v2.fcu": "lora: topk(density=0.2)|ternary(by=row,gain=1.1); head: allocate(budget=0.5,by=row)|ternary",
    "coded-packed.v2.fcu": "topk(density=0.5)|ternary",
}
RICHER = {"transform": "transform(budget=6)"}  # the sample would send nothing of so small an update
# Written by version 1 of a section, which is only read now.
OLD = ("bf16", "int", "int4", "int8", "lora-ternary", "none", "stc", "ternary", "topk", "range-masks", "range-symbols")
ADAPTER_FILE = "adapter.v2.fcu"
SEEDED = Layout((TensorSpec(name="m.lora_A.weight", shape=(2, 3), group="lora_a"),))


def fixed_key() -> PrivateKey:
    """Of the bytes 0 to 31: a key that everybody has."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return PrivateKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))), "golden")


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


def alike() -> Tensors:
    """Values of ``LONG`` whose rows are alike, and grow: near to rank one."""
    out = {}
    for name, value in skewed().items():
        rows = np.arange(1, value.shape[0] + 1, dtype=np.float32).reshape(-1, *[1] * (value.ndim - 1))
        first = value[:1] if value.ndim > 1 else value
        out[name] = (first * rows + value / np.float32(64)).astype(np.float32) if value.ndim > 1 else value
    return out


def uneven() -> Tensors:
    """Values of ``LONG`` that look random, the rows of A growing."""
    out = normal(LONG, 4)
    for spec in LONG.tensors:
        if spec.group == "lora_a":
            out[spec.name] *= np.float32(8) ** np.arange(spec.shape[0], dtype=np.float32)[:, None]
    return out


# What the files of ``CODED_SPECS`` encode, if not ``alike``.
TENSORS = {"packed": lambda: normal(LONG, 3), "gaps": skewed, "symbols": skewed, "rows": uneven}


def layout_of(name: str) -> Layout:
    """Layout of a golden update."""
    return LONG if name.startswith(("coded-", "range-")) else LAYOUT


def adapter_file(work: Path) -> bytes:
    """A .fcu file in parts, made from a PEFT folder against a base."""
    config = {"peft_type": "LORA", "r": 2, "modules_to_save": ["head"]}
    save_adapter(work / "tuned", config, LAYOUT, values())
    save_adapter(work / "base", config, LAYOUT, zeros(LAYOUT))
    out = work / ADAPTER_FILE
    codec = "lora: topk(density=0.3)|ternary; head: int4"
    encode_file(work / "tuned", out, base=work / "base", codec=codec, part_entries=42)
    return out.read_bytes()


def cases() -> Iterator[tuple[str, bytes]]:
    """File name and bytes of all that is written today."""
    for name in CODECS:
        header = update_header(LAYOUT, zeros(LAYOUT), metrics={"eval_examples": 2.0, "other": 0.1})
        yield (
            f"{name}.v2.fcu",
            encode_update(values(), LAYOUT, CodecSpec.parse(RICHER.get(name) or sample_spec(name)), header)[0],
        )
    for name, spec in CODED_SPECS.items():
        tensors = TENSORS.get(name.removeprefix("coded-").partition(".")[0], alike)()
        yield name, encode_update(tensors, LONG, CodecSpec.parse(spec), update_header(LONG, zeros(LONG)))[0]
    plain = encode_update(values(), LAYOUT, CodecSpec.parse("int8"), update_header(LAYOUT, zeros(LAYOUT)))[0]
    yield "signed.v2.fcu", sign_envelope(plain, fixed_key().sign)
    yield "snapshot-seed.v2.fcu", encode_snapshot(seeded_init(SEEDED, 7), SEEDED, run="run", version=0, init_seed=7)
