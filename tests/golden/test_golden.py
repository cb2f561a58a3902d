"""Old bytes decode to the same bits for ever; equal input still gives the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedcompress.adapters import seeded_init
from fedcompress.codecs import CODECS
from fedcompress.pipeline import decode_state, decode_update
from fedcompress.types import state_digest
from tests.golden.cases import LAYOUT, SEEDED, cases
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
    _, tensors = decode_update((HERE / name).read_bytes(), LAYOUT)
    assert state_digest(LAYOUT, tensors).hex() == json.loads((HERE / "decoded.json").read_text())[name]


def test_golden_snapshot() -> None:
    _, state = decode_state((HERE / "snapshot-seed.v1.fcu").read_bytes(), SEEDED, None)
    assert equal(state, seeded_init(SEEDED, 7))
