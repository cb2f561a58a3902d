"""Old bytes decode to the same bits for ever; equal input still gives the same bytes."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest

from fedcompress.adapters import load_adapter, seeded_init
from fedcompress.codecs import CODECS, CodecSpec, decode_sections, encode_sections
from fedcompress.codecs.byte_io import Reader
from fedcompress.codecs.entropy.positions import COLUMNS, GAPS, PACKED, RANGE, ROWS
from fedcompress.files import decode_file
from fedcompress.pipeline.states import decode_state
from fedcompress.pipeline.updates import decode_update
from fedcompress.types import state_digest
from fedcompress.wire import Limits, seal_of
from tests.golden.cases import ADAPTER_FILE, LAYOUT, OLD, SEEDED, adapter_file, cases, fixed_key, layout_of, values
from tests.support import equal

MACHINE = (
    "transform",
    "lora-transform",
    "lora-transform-down",
    "svd",
    "powersgd",
    "dct",
    "coded-columns",
    "coded-wide",
)
HERE = Path(__file__).parent
FRESH = dict(cases())


UPDATES = sorted({n for n in FRESH if not n.startswith("snapshot")} | {f"{n}.v1.fcu" for n in OLD})


def test_every_codec_has_a_golden_file() -> None:
    assert {p.name for p in HERE.glob("*.fcu")} >= {f"{name}.v2.fcu" for name in CODECS}
    assert set(json.loads((HERE / "decoded.json").read_text())) == set(UPDATES)


@pytest.mark.parametrize("name", FRESH)
def test_equal_input_gives_the_golden_bytes(name: str) -> None:
    """Codes with an eigensolver promise it on one machine only."""
    if name.partition(".")[0] in MACHINE:
        envelope, tensors = decode_update(FRESH[name], layout_of(name))
        _, golden = decode_update((HERE / name).read_bytes(), layout_of(name))
        assert len(FRESH[name]) == pytest.approx((HERE / name).stat().st_size, rel=0.05)
        assert all(np.allclose(tensors[n], golden[n], atol=0.1 * np.abs(golden[n]).max(initial=0)) for n in golden)
        assert envelope.header.codec
    else:
        assert (HERE / name).read_bytes() == FRESH[name]


@pytest.mark.parametrize("name", UPDATES)
def test_golden_bytes_decode_to_the_same_bits(name: str) -> None:
    layout = layout_of(name)
    _, tensors = decode_update((HERE / name).read_bytes(), layout)
    assert state_digest(layout, tensors).hex() == json.loads((HERE / "decoded.json").read_text())[name]


def test_no_golden_file_is_without_a_test() -> None:
    assert {p.name for p in HERE.glob("*.fcu")} == {*FRESH, *UPDATES, "snapshot-seed.v1.fcu", ADAPTER_FILE}


def test_every_coder_is_frozen_by_a_golden_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coder bytes that the files lead the readers to."""
    seen: set[tuple[str, int]] = set()
    real = Reader.u8

    def u8(self: Reader) -> int:
        value = real(self)
        seen.add((inspect.stack()[1].function, value))
        return value

    monkeypatch.setattr(Reader, "u8", u8)
    for name in UPDATES:
        decode_update((HERE / name).read_bytes(), layout_of(name))
    masks = {("read_positions", c) for c in (PACKED, GAPS, COLUMNS, ROWS)} | {
        ("_read_version_1", c) for c in (PACKED, RANGE)
    }
    assert seen >= masks | {("read_signs", c) for c in (0, 1)} | {("read_symbols", c) for c in (0, 1)}


@pytest.mark.parametrize("version", [1, 2])
def test_golden_snapshot(version: int) -> None:
    _, state = decode_state((HERE / f"snapshot-seed.v{version}.fcu").read_bytes(), SEEDED, None)
    assert equal(state, seeded_init(SEEDED, 7))


def test_golden_signature() -> None:
    """The key is made from its 32 bytes as RFC 8032 says, and verifies what it signed."""
    data = (HERE / "signed.v2.fcu").read_bytes()
    seal, key = seal_of(data, Limits.for_numel(LAYOUT.numel)), fixed_key()
    assert key.public.data.hex() == "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
    assert seal.statement == b"fedcompress-envelope-v1\0" + seal.digest
    assert key.public.verifies(seal.signature, seal.statement)
    assert data[6] == 1
    assert data.endswith(seal.digest + seal.signature)


def test_golden_file(tmp_path: Path) -> None:
    """A .fcu file of kind FILE, in parts: equal input gives its bytes, and it becomes the same folder."""
    assert (HERE / ADAPTER_FILE).read_bytes() == adapter_file(tmp_path)
    decode_file(HERE / ADAPTER_FILE, tmp_path / "again", base=tmp_path / "base")
    found = load_adapter(tmp_path / "again")
    codec = CodecSpec.parse("lora: topk(density=0.3)|ternary; head: int4")
    expected = decode_sections(codec, LAYOUT, encode_sections(codec, LAYOUT, values()))
    assert equal(found.tensors, {name: expected[name] for name in sorted(expected)})
