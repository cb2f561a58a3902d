"""Part by part is the same as at once: codes, states, residuals and what a site's session keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedcompress import chunks as chunks_module
from fedcompress.chunks import TensorSlice, read_slices, split_layout
from fedcompress.codecs import CodecSpec, encode_sections
from fedcompress.errors import MismatchError, PayloadError
from fedcompress.pipeline import coding
from fedcompress.pipeline.coding import stream_update
from fedcompress.pipeline.states import decode_state, encode_delta, encode_snapshot, stream_state
from fedcompress.pipeline.updates import decode_update, encode_update
from fedcompress.storage import tensor_file
from fedcompress.storage.tensor_file import MAGIC, open_tensor_file, serialize_chunks, streamed_state_digest
from fedcompress.types import Tensors, state_digest, zeros
from fedcompress.wire import Kind, pack
from tests.unit.slices import CODECS, LAYOUT, LIMITS, equal, header, normal

pytestmark = pytest.mark.usefixtures("small_slices")


@pytest.mark.parametrize("codec", CODECS)
def test_an_update_in_parts_decodes_to_what_its_sender_kept(codec: str) -> None:
    values, kept, spec = normal(1), zeros(LAYOUT), CodecSpec.parse(codec)

    def keep(pieces: list[TensorSlice], target: Tensors, decoded: Tensors) -> None:
        assert equal(target, read_slices(values, pieces))
        for piece in pieces:
            kept[piece.spec.name][chunks_module.slice_rows(piece)] = decoded[piece.spec.name]

    data = stream_update(lambda pieces: read_slices(values, pieces), LAYOUT, spec, header(), keep)
    assert len(split_layout(LAYOUT, 100)) > 5
    assert equal(decode_update(data, LAYOUT)[1], kept)
    again, decoded = encode_update(values, LAYOUT, spec, header())
    assert again == data
    assert equal(decoded, kept)
    if codec == "none":
        assert equal(kept, values)


def test_sections_that_are_missing_or_too_many_are_refused() -> None:
    spec = CodecSpec.parse("int8")
    sections = coding.encode_chunks(spec, LAYOUT, lambda pieces: read_slices(normal(1), pieces))
    whole = encode_sections(spec, LAYOUT, normal(1))  # a receiver's memory is bounded by a part
    for wrong in (sections[:-1], (*sections, sections[0]), sections[:2], (), whole):
        with pytest.raises(PayloadError):
            decode_update(pack(header(codec="int8"), tuple(wrong)), LAYOUT)
    for swapped in ((sections[-1], *sections[1:]), (sections[0][:-1], *sections[1:])):
        with pytest.raises(PayloadError):
            decode_update(pack(header(codec="int8"), swapped), LAYOUT)


@pytest.mark.parametrize("codec", CODECS)
def test_states_in_parts_are_those_in_memory(codec: str, tmp_path: Path) -> None:
    base, spec = normal(2), CodecSpec.parse(codec)
    data, _, reached = encode_delta(normal(3), base, LAYOUT, spec, header(Kind.DELTA))
    (tmp_path / "state").write_bytes(b"".join(serialize_chunks(v for _, v in stream_state(data, LAYOUT, base, LIMITS))))
    found = open_tensor_file(tmp_path / "state", LAYOUT)
    assert equal(found, reached)
    assert equal(decode_state(data, LAYOUT, base)[1], reached)
    assert streamed_state_digest(LAYOUT, found) == state_digest(LAYOUT, reached)
    with pytest.raises(MismatchError, match="the state before"):
        list(stream_state(data, LAYOUT, normal(4), LIMITS))
    snapshot = encode_snapshot(reached, LAYOUT, run="r", version=1)
    assert equal(values_joined(snapshot), reached)


def values_joined(data: bytes) -> Tensors:
    out = zeros(LAYOUT)
    for pieces, values in stream_state(data, LAYOUT, None, LIMITS):
        for piece in pieces:
            out[piece.spec.name][chunks_module.slice_rows(piece)] = values[piece.spec.name]
    return out


def test_a_start_of_zeros_is_a_seed_on_the_wire_and_four_bytes_on_the_disk(tmp_path: Path) -> None:
    data = encode_snapshot(zeros(LAYOUT), LAYOUT, run="r", version=0, init_seed=5)
    assert len(data) < 200
    (tmp_path / "state").write_bytes(b"".join(serialize_chunks(v for _, v in stream_state(data, LAYOUT, None, LIMITS))))
    assert (tmp_path / "state").read_bytes() == MAGIC
    assert equal(open_tensor_file(tmp_path / "state", LAYOUT), zeros(LAYOUT))
    late = {
        **zeros(LAYOUT),
        "up": np.ones((7, 40), np.float32),
    }  # after zeros, which are then written
    (tmp_path / "late").write_bytes(
        b"".join(serialize_chunks(values for _, values in tensor_file.iterate_chunks(LAYOUT, late)))
    )
    assert equal(open_tensor_file(tmp_path / "late", LAYOUT), late)
