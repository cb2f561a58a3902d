"""Old bytes decode to the same bits for ever; equal input still gives the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedcompress.adapters import seeded_init
from fedcompress.codecs import CODECS, CodecSpec
from fedcompress.codecs.base import Reader
from fedcompress.codecs.entropy import RANGE
from fedcompress.codecs.integer import Integer
from fedcompress.pipeline import decode_state, decode_update
from fedcompress.types import state_digest
from tests.golden.cases import LONG, RANGE_SPECS, SEEDED, cases, layout_of
from tests.support import equal

HERE = Path(__file__).parent
FRESH = dict(cases())


def test_every_codec_has_a_golden_file() -> None:
    assert {p.name for p in HERE.glob("*.fcu")} >= {f"{name}.v1.fcu" for name in CODECS}
    assert set(json.loads((HERE / "decoded.json").read_text())) >= {f"{name}.v1.fcu" for name in CODECS}


@pytest.mark.parametrize("name", FRESH)
def test_equal_input_gives_the_golden_bytes(name: str) -> None:
    assert (HERE / name).read_bytes() == FRESH[name]


@pytest.mark.parametrize("name", [n for n in FRESH if not n.startswith("snapshot")])
def test_golden_bytes_decode_to_the_same_bits(name: str) -> None:
    layout = layout_of(name)
    _, tensors = decode_update((HERE / name).read_bytes(), layout)
    assert state_digest(layout, tensors).hex() == json.loads((HERE / "decoded.json").read_text())[name]


def test_no_golden_file_is_without_a_test() -> None:
    assert {p.name for p in HERE.glob("*.fcu")} == set(FRESH)
    assert set(json.loads((HERE / "decoded.json").read_text())) == {n for n in FRESH if not n.startswith("snapshot")}


@pytest.mark.parametrize("name", RANGE_SPECS)
def test_every_stream_of_the_range_files_is_range_coded(name: str) -> None:
    """Otherwise nothing would freeze the range coder."""
    envelope, _ = decode_update((HERE / name).read_bytes(), LONG)
    codec = CodecSpec.parse(envelope.header.codec)
    for clause, members, section in zip(codec.clauses, codec.assign(LONG), envelope.sections, strict=True):
        reader, sizes = Reader(section), [m.numel for m in members]
        reader.u8()
        if clause.select is not None:
            sizes = [reader.varint() for _ in members]
            assert reader.u8() == RANGE
            reader.stream()
        if isinstance(clause.quantize, Integer):
            step = clause.quantize.block
            reader.raw(2 * sum(-(-n // step) if step else n > 0 for n in sizes))
            if clause.select is None:
                assert reader.u8() == RANGE


def test_golden_snapshot() -> None:
    _, state = decode_state((HERE / "snapshot-seed.v1.fcu").read_bytes(), SEEDED, None)
    assert equal(state, seeded_init(SEEDED, 7))
