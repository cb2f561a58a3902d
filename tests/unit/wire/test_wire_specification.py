"""The examples in protos/README.md are what the code does."""

from __future__ import annotations

import hashlib
import re

import constriction
import numpy as np

from fedcompress.codecs import CodecSpec
from fedcompress.pipeline.updates import decode_update, encode_update
from fedcompress.types import Layout, TensorSpec, state_digest, zeros
from fedcompress.wire import Header, Kind
from tests.support import ROOT
from tests.unit.codecs import range_reference as reference

TEXT = (ROOT / "protos" / "README.md").read_text(encoding="utf-8")
WORD = re.compile(r"\b[0-9a-f]{16}\b")


def test_the_dump_is_the_envelope() -> None:
    layout = Layout((TensorSpec(name="w", shape=(12,), group="other"),))
    update = zeros(layout)
    update["w"][[1, 4, 9]] = 0.5, -0.25, 0.75
    header = Header(
        kind=Kind.UPDATE,
        run="r",
        site="s",
        round=1,
        version=0,
        codec="",
        layout_digest=layout.digest,
        base_digest=state_digest(layout, zeros(layout)),
        examples=5,
    )
    data, _ = encode_update(update, layout, CodecSpec.parse("topk(density=0.25)|ternary"), header)
    section = TEXT.partition("## 7.")[2].partition("(version is 0")[0]
    dump = "".join(
        re.match(r"    ((?:[0-9a-f]{2} ?)+)", line)[1] for line in section.splitlines() if line[:4] == "    "
    )
    assert bytes.fromhex(dump) == data
    decoded = decode_update(data, layout)[1]["w"]
    assert np.flatnonzero(decoded).tolist() == [1, 4, 9]
    assert decoded[[1, 4, 9]].tolist() == [0.5, -0.5, 0.5]


def test_philox_words() -> None:
    key = int.from_bytes(hashlib.sha256(b"7/m.lora_A.weight").digest()[:16], "little")
    zero, _, seeded = TEXT.partition("Key 0 gives")[2].partition("For s = 7")
    low, high, *words = (int(w, 16) for w in WORD.findall(seeded)[:8])
    assert (low, high) == (key & (1 << 64) - 1, key >> 64)
    assert words == np.random.Philox(key=key).random_raw(6).tolist() == reference.philox(key, 6)
    of_zero = [int(w, 16) for w in WORD.findall(zero)]
    assert of_zero == np.random.Philox(key=0).random_raw(5).tolist() == reference.philox(0, 5)


def test_seeded_values() -> None:
    printed = [float.fromhex(v) for v in re.findall(r"-?0x1\.[0-9a-f]+p-\d", TEXT)]
    expected = reference.seeded_start(7, "m.lora_A.weight", 6, 3)
    assert printed == np.array(expected, np.float64).astype(np.float32).tolist()


def test_range_coder_vectors() -> None:
    rows = re.findall(
        r"^\| `(bernoulli|categorical)\(([\d, ]+)\)` \| ([\d, ]+) \| .* \| `([0-9a-f ]+)` \|$", TEXT, re.MULTILINE
    )
    assert [row[0] for row in rows] == ["bernoulli", "categorical"]
    sparse = [int(i in (3, 17, 36)) for i in range(40)]
    for (name, args, cumulative, words), symbols in zip(rows, (sparse, [1, 1, 0, 1, 2, 1, 1, 2]), strict=True):
        numbers = [int(a) for a in args.split(",")]
        if name == "bernoulli":
            table = reference.bernoulli(*numbers)
            model = constriction.stream.model.Bernoulli(numbers[0] / numbers[1], perfect=False)
        else:
            table = reference.categorical(numbers)
            model = constriction.stream.model.Categorical(np.array(numbers) / sum(numbers), perfect=False)
        assert table == [int(c) for c in cumulative.split(",")]
        encoder = constriction.stream.queue.RangeEncoder()
        encoder.encode(np.array(symbols, np.int32), model)
        assert [f"{w:08x}" for w in encoder.get_compressed()] == words.split()
        stream = encoder.get_compressed().astype("<u4").tobytes()
        assert list(reference.RangeDecoder(stream).symbols(table, len(symbols))) == symbols
