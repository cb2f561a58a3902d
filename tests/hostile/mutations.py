"""Payloads for every codec, and ways to spoil them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedcompress.codecs import CODECS, CodecSpec, decode_sections, encode_sections, sample_spec
from fedcompress.errors import PayloadError
from fedcompress.types import Layout, TensorSpec
from tests.support import normal

LAYOUT = Layout(
    (
        TensorSpec(name="a", shape=(4, 24), group="lora_a"),
        TensorSpec(name="b", shape=(20, 4), group="lora_b"),
        TensorSpec(name="h", shape=(3, 10), group="head"),
        TensorSpec(name="o", shape=(7,), group="other"),
    )
)
RICHER = {"transform": "transform(budget=5)", "seeds": "seeds(count=4)", "threshold": "threshold(at=1.2)|ternary"}


def payloads() -> dict[str, tuple[CodecSpec, tuple[bytes, ...]]]:
    """An honest payload of each row, and of each selector with ternary values."""
    specs = {name: RICHER.get(name) or sample_spec(name) for name in CODECS}
    specs |= {f"{n}|ternary": f"{s.partition('|')[0]}|ternary" for n, s in specs.items() if CODECS[n].kind == "select"}
    specs["transform-wide"] = "transform(budget=12)"
    values = normal(LAYOUT, 5)
    values["a"] += 3 * np.outer(np.arange(4) - 1.5, values["a"][0]).astype(np.float32)
    out = {}
    for name, text in specs.items():
        spec = CodecSpec.parse(text)
        out[name] = (spec, encode_sections(spec, LAYOUT, values, seed=3))
    return out


def spoiled(section: bytes, draw: np.random.Generator, count: int) -> Iterator[bytes]:
    """Bits flipped, bytes set, cut, doubled, moved, lengthened."""
    for _ in range(count):
        data = bytearray(section)
        for _ in range(int(draw.integers(1, 4))):
            at = int(draw.integers(1, max(len(data), 2)))  # the version stays, mostly
            match int(draw.integers(0, 7)):
                case 0 | 1 if at < len(data):
                    data[at] ^= 1 << int(draw.integers(8))
                case 2 if at < len(data):
                    data[at] = int(draw.choice([0, 1, 0x7F, 0x80, 0xFF]))
                case 3:
                    del data[at:]
                case 4:
                    data += draw.bytes(int(draw.integers(1, 9)))
                case 5:
                    data[at:at] = data[: int(draw.integers(1, 9))]
                case _:
                    end = int(draw.integers(at, len(data) + 1))
                    data[at:end] = data[at:end][::-1]
        yield bytes(data)


def refused_or_decoded(spec: CodecSpec, sections: tuple[bytes, ...], layout: Layout = LAYOUT) -> bool:
    """True if the payload decodes; anything but ``PayloadError`` is raised on."""
    try:
        decoded = decode_sections(spec, layout, sections)
    except PayloadError:
        return False
    layout.check(decoded, what="decoded")
    return True
