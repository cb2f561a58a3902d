"""What a site keeps of a run whose tensors stay on the disk."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from clients.state.run_tensors import RunSnapshot, StreamedSnapshot
from clients.state.site_state import SiteState
from fedcompress.chunks import TensorSlice, read_slices
from fedcompress.codecs import CodecSpec
from fedcompress.errors import AccessError, StateError
from fedcompress.pipeline.coding import stream_update
from fedcompress.pipeline.states import encode_delta, encode_snapshot
from fedcompress.pipeline.updates import decode_update, encode_update
from fedcompress.storage import tensor_file
from fedcompress.storage.tensor_file import MAGIC, TensorFile, ZeroTensors
from fedcompress.types import Tensors, add, state_digest, subtract, zeros
from fedcompress.wire import Kind
from tests.support import no_descriptors
from tests.unit.slices import LAYOUT, equal, header, normal

pytestmark = pytest.mark.usefixtures("small_slices")


def commit(session: SiteState, held: RunSnapshot, payload: bytes, kept: Tensors) -> None:
    """The reply to round 1, and what it left out."""
    with session.write_residual("r", LAYOUT) as writer:
        for slices, values in tensor_file.iterate_chunks(LAYOUT, kept):
            writer.add(slices, values)
    session.commit("r", 1, held.digest, payload, writer.stored)


@pytest.mark.parametrize("is_stream", [False, True])
def test_what_was_given_back_and_merged_all_the_same(tmp_path: Path, is_stream: bool) -> None:
    """It came while the site was already asked under a new node id; told so, the site takes it out again, once."""
    session = SiteState(tmp_path)
    start = encode_snapshot(zeros(LAYOUT), LAYOUT, run="r", version=0, init_seed=5)
    held = session.apply_downlink("r", LAYOUT, start, on_disk=is_stream)
    delta, kept = normal(11), normal(12)
    head = header(round=1, base_digest=held.digest)
    payload, decoded = encode_update(delta, LAYOUT, CodecSpec.parse("ternary"), head)
    commit(session, held, payload, kept)
    digest = payload[-32:].hex()

    def residual() -> Tensors:
        now = session.snapshot("r")
        assert now is not None
        return {name: np.array(now.residual[name]) for name in delta}

    assert session.reconcile_outbox("r", 2, b"", []) == 1
    assert all(np.allclose(residual()[n], kept[n] + decoded[n], atol=1e-6) for n in delta)
    for _ in range(2):
        assert session.reconcile_outbox("r", 3, b"", [digest], is_named=True) == 0
        assert all(np.allclose(residual()[n], kept[n], atol=1e-6) for n in delta)
    assert session.reconcile_outbox("r", 4, b"", [], is_named=True) == 0, (
        "a name that is new to the coordinator says nothing"
    )
    assert all(np.allclose(residual()[n], kept[n], atol=1e-6) for n in delta)


@pytest.mark.parametrize("is_stream", [False, True])
def test_what_was_given_back_and_merged_but_cannot_be_read(tmp_path: Path, is_stream: bool) -> None:
    """It cannot be taken out of the residual again, which is lost then; the site goes on."""
    session = SiteState(tmp_path)
    start = encode_snapshot(zeros(LAYOUT), LAYOUT, run="r", version=0, init_seed=5)
    held = session.apply_downlink("r", LAYOUT, start, on_disk=is_stream)
    head = header(round=1, base_digest=held.digest)
    payload, _ = encode_update(normal(11), LAYOUT, CodecSpec.parse("ternary"), head)
    commit(session, held, payload, normal(12))
    assert session.reconcile_outbox("r", 2, b"", []) == 1
    (blob,) = (path for path in (tmp_path / "blobs").iterdir() if path.read_bytes() == payload)
    blob.write_bytes(payload[:-1])
    for round_ in (3, 4):
        assert session.reconcile_outbox("r", round_, b"", [payload[-32:].hex()], is_named=True) == 0
    now = session.snapshot("r")
    assert now is not None
    assert equal({name: np.array(now.residual[name]) for name in held.state}, zeros(LAYOUT))


def test_a_stream_that_cannot_be_opened_now_is_not_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where it is opened nor where it is read: nothing is given up, and the update is given back later."""
    session = SiteState(tmp_path)
    start = encode_snapshot(zeros(LAYOUT), LAYOUT, run="r", version=0, init_seed=5)
    held = session.apply_downlink("r", LAYOUT, start, on_disk=True)
    kept = normal(12)
    payload, decoded = encode_update(normal(11), LAYOUT, CodecSpec.parse("ternary"), header(round=1))
    commit(session, held, payload, kept)
    with no_descriptors(), pytest.raises(AccessError, match="cannot be opened now: Too many open files"):
        session.apply_downlink("r", LAYOUT, start, on_disk=True)

    def gone(*args: object, **options: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patched:
        patched.setattr(np, "fromfile", gone)
        with pytest.raises(AccessError, match="cannot be opened now: Stale file handle"):
            session.reconcile_outbox("r", 2, b"", [])
    assert session.reconcile_outbox("r", 2, b"", []) == 1
    now = session.snapshot("r")
    assert now is not None
    assert all(np.allclose(np.array(now.residual[n]), kept[n] + decoded[n], atol=1e-6) for n in kept)


def test_the_residual_of_a_stream_is_checked_in_each_round(tmp_path: Path) -> None:
    """A changed one is not sent; a snapshot heals the site, without it."""
    session = SiteState(tmp_path)
    start = encode_snapshot(zeros(LAYOUT), LAYOUT, run="r", version=0, init_seed=5)
    held = session.apply_downlink("r", LAYOUT, start, on_disk=True)
    payload, _ = encode_update(normal(11), LAYOUT, CodecSpec.parse("ternary"), header(round=1, base_digest=held.digest))
    commit(session, held, payload, normal(12))
    kept = session.residual("r", LAYOUT)
    assert isinstance(kept, TensorFile)
    (file,) = (path for path in (tmp_path / "blobs").iterdir() if path.read_bytes() not in (payload, MAGIC))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(StateError, match="SHA-256 does not match"):
        session.residual("r", LAYOUT)
    assert isinstance(session.apply_downlink("r", LAYOUT, start, on_disk=True).residual, ZeroTensors)


def test_a_session_in_parts_loses_nothing(tmp_path: Path) -> None:
    """Sum of what was merged, and the residual, are the sum of the updates; a worker that is killed begins there."""
    spec, round_bases, total, merged = CodecSpec.parse("topk(density=0.1)|ternary"), b"", zeros(LAYOUT), zeros(LAYOUT)
    session = SiteState(tmp_path)
    start = encode_snapshot(zeros(LAYOUT), LAYOUT, run="r", version=0, init_seed=5)
    held = session.apply_downlink("r", LAYOUT, start, on_disk=True)
    assert isinstance(held, StreamedSnapshot)
    assert isinstance(held.residual, ZeroTensors)
    known: list[str] = []
    for round_ in (1, 2, 3):
        delta, head = normal(10 + round_), header(round=round_, base_digest=held.digest)
        total = add(total, delta)
        residual = session.snapshot("r").residual  # type: ignore[union-attr]
        with session.write_residual("r", LAYOUT) as writer:

            def keep(slices: list[TensorSlice], target: Tensors, decoded: Tensors) -> None:
                writer.add(slices, subtract(target, decoded))

            def read(pieces: list[TensorSlice]) -> Tensors:
                return add(read_slices(delta, pieces), read_slices(residual, pieces))  # noqa: B023

            payload = stream_update(read, LAYOUT, spec, head, keep)
        session.commit("r", round_, held.digest, payload, writer.stored)
        assert session.find_reply("r", round_, held.digest) == payload
        session.close()
        session = SiteState(tmp_path)
        is_merged = round_ != 2
        if is_merged:
            merged = add(merged, decode_update(payload, LAYOUT)[1])
        known = [payload[-32:].hex()] if is_merged else known  # what was merged last
        assert session.reconcile_outbox("r", round_ + 1, round_bases, known) == (0 if is_merged else 1)
    last = session.snapshot("r")
    assert last is not None
    assert isinstance(last.residual, TensorFile)
    for name, value in total.items():
        assert np.allclose(merged[name] + last.residual[name], value, atol=1e-5)
    step = {n: v / np.float32(2) for n, v in total.items()}
    data, _, reached = encode_delta(step, zeros(LAYOUT), LAYOUT, spec, header(Kind.DELTA, version=1))
    held = session.apply_downlink("r", LAYOUT, data, on_disk=True)
    assert held.version == 1
    assert equal(held.state, reached)
    assert held.digest == state_digest(LAYOUT, reached)
    assert len(list((tmp_path / "blobs").iterdir())) == 5  # three replies, state and residual
    held.file.write_bytes(MAGIC)  # type: ignore[union-attr]
    with pytest.raises(StateError, match="SHA-256"):
        SiteState(tmp_path).snapshot("r")
    session.close()
