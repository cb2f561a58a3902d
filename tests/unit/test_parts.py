"""Part by part is the same as at once: codes, states, residuals and what a site's session keeps."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from clients.worker.session import Held, Session
from fedcompress import parts
from fedcompress.codecs import CodecSpec, encode_sections
from fedcompress.errors import AccessError, MismatchError, PayloadError, StateError
from fedcompress.parts import Piece, coding, cut, stored, streaming, values_of
from fedcompress.parts.stored import MAGIC, Stored, Zeros, chunks, digest_of, opened
from fedcompress.parts.streaming import stream_state, stream_update
from fedcompress.pipeline import decode_state, decode_update, encode_delta, encode_snapshot, encode_update
from fedcompress.subspaces import basis_of, expand, project, shared_seed
from fedcompress.types import Layout, Tensors, TensorSpec, add, state_digest, subtract, zeros
from fedcompress.wire import Header, Kind, Limits, pack
from tests.support import no_descriptors

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


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 100 entries, so that tensors are cut and joined."""
    for module in (coding, parts, stored, streaming):
        monkeypatch.setattr(module, "ROUND_PART", 100)


def normal(seed: int) -> Tensors:
    generator = np.random.default_rng(seed)
    return {t.name: generator.normal(size=t.shape).astype(np.float32).reshape(t.shape) for t in LAYOUT.tensors}


def header(kind: Kind = Kind.UPDATE, **fields: object) -> Header:
    known = {"run": "r", "site": "s", "round": 1, "version": 0, "codec": "", "layout_digest": LAYOUT.digest}
    return Header(kind=kind, **{**known, "base_digest": b"\1" * 32, "result_digest": b"\1" * 32, **fields})  # type: ignore[arg-type]


def equal(left: object, right: Tensors) -> bool:
    return all(np.array_equal(left[n], v) and left[n].shape == v.shape for n, v in right.items())  # type: ignore[index]


@pytest.mark.parametrize("codec", CODECS)
def test_an_update_in_parts_decodes_to_what_its_sender_kept(codec: str) -> None:
    values, kept, spec = normal(1), zeros(LAYOUT), CodecSpec.parse(codec)

    def keep(pieces: list[Piece], target: Tensors, decoded: Tensors) -> None:
        assert equal(target, values_of(values, pieces))
        for piece in pieces:
            kept[piece.spec.name][parts.rows_of(piece)] = decoded[piece.spec.name]

    data = stream_update(lambda pieces: values_of(values, pieces), LAYOUT, spec, header(), keep)
    assert len(cut(LAYOUT, 100)) > 5
    assert equal(decode_update(data, LAYOUT)[1], kept)
    again, decoded = encode_update(values, LAYOUT, spec, header())
    assert again == data
    assert equal(decoded, kept)
    if codec == "none":
        assert equal(kept, values)


def test_sections_that_are_missing_or_too_many_are_refused() -> None:
    spec = CodecSpec.parse("int8")
    sections = coding.encode_parts(spec, LAYOUT, lambda pieces: values_of(normal(1), pieces))
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
    (tmp_path / "state").write_bytes(b"".join(chunks(stream_state(data, LAYOUT, base, LIMITS))))
    found = opened(tmp_path / "state", LAYOUT)
    assert equal(found, reached)
    assert equal(decode_state(data, LAYOUT, base)[1], reached)
    assert digest_of(LAYOUT, found) == state_digest(LAYOUT, reached)
    with pytest.raises(MismatchError, match="the state before"):
        list(stream_state(data, LAYOUT, normal(4), LIMITS))
    snapshot = encode_snapshot(reached, LAYOUT, run="r", version=1)
    assert equal(values_joined(snapshot), reached)


def values_joined(data: bytes) -> Tensors:
    out = zeros(LAYOUT)
    for pieces, values in zip(cut(LAYOUT, 100), stream_state(data, LAYOUT, None, LIMITS), strict=True):
        for piece in pieces:
            out[piece.spec.name][parts.rows_of(piece)] = values[piece.spec.name]
    return out


def test_a_start_of_zeros_is_a_seed_on_the_wire_and_four_bytes_on_the_disk(tmp_path: Path) -> None:
    data = encode_snapshot(zeros(LAYOUT), LAYOUT, run="r", version=0, init_seed=5)
    assert len(data) < 200
    (tmp_path / "state").write_bytes(b"".join(chunks(stream_state(data, LAYOUT, None, LIMITS))))
    assert (tmp_path / "state").read_bytes() == MAGIC
    assert equal(opened(tmp_path / "state", LAYOUT), zeros(LAYOUT))
    late = {
        **zeros(LAYOUT),
        "up": np.ones((7, 40), np.float32),
    }  # after zeros, which are then written
    (tmp_path / "late").write_bytes(b"".join(chunks(values for _, values in stored.parts_of(LAYOUT, late))))
    assert equal(opened(tmp_path / "late", LAYOUT), late)


def test_files_that_are_not_streams_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with pytest.raises(StateError, match="cannot be read"):
        opened(path, LAYOUT)
    path.write_bytes(b"nothing")
    with pytest.raises(StateError, match="is not a stream"):
        opened(path, LAYOUT)
    path.write_bytes(MAGIC + b"\0" * 7)
    with pytest.raises(StateError, match="the layout needs"):
        opened(path, LAYOUT)


def commit(session: Session, held: Held, payload: bytes, kept: Tensors) -> None:
    """The reply to round 1, and what it left out."""
    if not held.is_stream:
        session.commit("r", 1, held.digest, payload, kept)
        return
    with session.stream() as writer:
        writer.write(MAGIC)
        for chunk in stored.raw(kept):
            writer.write(chunk)
    session.commit("r", 1, held.digest, payload, writer)


@pytest.mark.parametrize("is_stream", [False, True])
def test_what_was_given_back_and_merged_all_the_same(tmp_path: Path, is_stream: bool) -> None:
    """It came while the site was already asked under a new node id; told so, the site takes it out again, once."""
    session = Session(tmp_path)
    start = encode_snapshot(zeros(LAYOUT), LAYOUT, run="r", version=0, init_seed=5)
    held = session.receive("r", LAYOUT, start, is_stream=is_stream)
    delta, kept = normal(11), normal(12)
    head = header(round=1, base_digest=held.digest)
    payload, decoded = encode_update(delta, LAYOUT, CodecSpec.parse("ternary"), head)
    commit(session, held, payload, kept)
    digest = payload[-32:].hex()

    def residual() -> Tensors:
        now = session.held("r")
        assert now is not None
        return {name: np.array(now.residual[name]) for name in delta}

    assert session.settle("r", 2, b"", []) == 1
    assert all(np.allclose(residual()[n], kept[n] + decoded[n], atol=1e-6) for n in delta)
    for _ in range(2):
        assert session.settle("r", 3, b"", [digest], is_named=True) == 0
        assert all(np.allclose(residual()[n], kept[n], atol=1e-6) for n in delta)
    assert session.settle("r", 4, b"", [], is_named=True) == 0, "a name that is new to the coordinator says nothing"
    assert all(np.allclose(residual()[n], kept[n], atol=1e-6) for n in delta)


@pytest.mark.parametrize("is_stream", [False, True])
def test_what_was_given_back_and_merged_but_cannot_be_read(tmp_path: Path, is_stream: bool) -> None:
    """It cannot be taken out of the residual again, which is lost then; the site goes on."""
    session = Session(tmp_path)
    start = encode_snapshot(zeros(LAYOUT), LAYOUT, run="r", version=0, init_seed=5)
    held = session.receive("r", LAYOUT, start, is_stream=is_stream)
    head = header(round=1, base_digest=held.digest)
    payload, _ = encode_update(normal(11), LAYOUT, CodecSpec.parse("ternary"), head)
    commit(session, held, payload, normal(12))
    assert session.settle("r", 2, b"", []) == 1
    (blob,) = (path for path in (tmp_path / "blobs").iterdir() if path.read_bytes() == payload)
    blob.write_bytes(payload[:-1])
    for round_ in (3, 4):
        assert session.settle("r", round_, b"", [payload[-32:].hex()], is_named=True) == 0
    now = session.held("r")
    assert now is not None
    assert equal({name: np.array(now.residual[name]) for name in held.state}, zeros(LAYOUT))


def test_a_stream_that_cannot_be_opened_now_is_not_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where it is opened nor where it is read: nothing is given up, and the update is given back later."""
    session = Session(tmp_path)
    start = encode_snapshot(zeros(LAYOUT), LAYOUT, run="r", version=0, init_seed=5)
    held = session.receive("r", LAYOUT, start, is_stream=True)
    kept = normal(12)
    payload, decoded = encode_update(normal(11), LAYOUT, CodecSpec.parse("ternary"), header(round=1))
    commit(session, held, payload, kept)
    with no_descriptors(), pytest.raises(AccessError, match="cannot be opened now: Too many open files"):
        session.receive("r", LAYOUT, start, is_stream=True)

    def gone(*args: object, **options: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patched:
        patched.setattr(np, "fromfile", gone)
        with pytest.raises(AccessError, match="cannot be opened now: Stale file handle"):
            session.settle("r", 2, b"", [])
    assert session.settle("r", 2, b"", []) == 1
    now = session.held("r")
    assert now is not None
    assert all(np.allclose(np.array(now.residual[n]), kept[n] + decoded[n], atol=1e-6) for n in kept)


def test_the_residual_of_a_stream_is_checked_in_each_round(tmp_path: Path) -> None:
    """A changed one is not sent; a snapshot heals the site, without it."""
    session = Session(tmp_path)
    start = encode_snapshot(zeros(LAYOUT), LAYOUT, run="r", version=0, init_seed=5)
    held = session.receive("r", LAYOUT, start, is_stream=True)
    payload, _ = encode_update(normal(11), LAYOUT, CodecSpec.parse("ternary"), header(round=1, base_digest=held.digest))
    commit(session, held, payload, normal(12))
    kept = session.residual("r", LAYOUT)
    assert isinstance(kept, Stored)
    (file,) = (path for path in (tmp_path / "blobs").iterdir() if path.read_bytes() not in (payload, MAGIC))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(StateError, match="SHA-256 does not match"):
        session.residual("r", LAYOUT)
    assert isinstance(session.receive("r", LAYOUT, start, is_stream=True).residual, Zeros)


def test_a_session_in_parts_loses_nothing(tmp_path: Path) -> None:
    """Sum of what was merged, and the residual, are the sum of the updates; a worker that is killed begins there."""
    spec, round_bases, total, merged = CodecSpec.parse("topk(density=0.1)|ternary"), b"", zeros(LAYOUT), zeros(LAYOUT)
    session = Session(tmp_path)
    start = encode_snapshot(zeros(LAYOUT), LAYOUT, run="r", version=0, init_seed=5)
    held = session.receive("r", LAYOUT, start, is_stream=True)
    assert held.is_stream
    assert isinstance(held.residual, Zeros)
    known: list[str] = []
    for round_ in (1, 2, 3):
        delta, head = normal(10 + round_), header(round=round_, base_digest=held.digest)
        total = add(total, delta)
        residual = session.held("r").residual  # type: ignore[union-attr]
        with session.stream() as writer:
            writer.write(MAGIC)

            def keep(_: list[Piece], target: Tensors, decoded: Tensors) -> None:
                for chunk in stored.raw(subtract(target, decoded)):
                    writer.write(chunk)

            def read(pieces: list[Piece]) -> Tensors:
                return add(values_of(delta, pieces), values_of(residual, pieces))  # noqa: B023

            payload = stream_update(read, LAYOUT, spec, head, keep)
        session.commit("r", round_, held.digest, payload, writer)
        assert session.replay("r", round_, held.digest) == payload
        session.close()
        session = Session(tmp_path)
        is_merged = round_ != 2
        if is_merged:
            merged = add(merged, decode_update(payload, LAYOUT)[1])
        known = [payload[-32:].hex()] if is_merged else known  # what was merged last
        assert session.settle("r", round_ + 1, round_bases, known) == (0 if is_merged else 1)
    last = session.held("r")
    assert last is not None
    assert isinstance(last.residual, Stored)
    for name, value in total.items():
        assert np.allclose(merged[name] + last.residual[name], value, atol=1e-5)
    step = {n: v / np.float32(2) for n, v in total.items()}
    data, _, reached = encode_delta(step, zeros(LAYOUT), LAYOUT, spec, header(Kind.DELTA, version=1))
    held = session.receive("r", LAYOUT, data, is_stream=True)
    assert held.version == 1
    assert equal(held.state, reached)
    assert held.digest == state_digest(LAYOUT, reached)
    assert len(list((tmp_path / "blobs").iterdir())) == 5  # three replies, state and residual
    held.file.write_bytes(MAGIC)  # type: ignore[union-attr]
    with pytest.raises(StateError, match="SHA-256"):
        Session(tmp_path).held("r")
    session.close()


@pytest.mark.parametrize("kind", ["random", "dct"])
def test_bases_are_of_a_seed_and_a_name(kind: str) -> None:
    seed = shared_seed("run", 3)
    basis = basis_of(kind, 64, 8, seed, "q")
    assert np.array_equal(basis, basis_of(kind, 64, 8, shared_seed("run", 3), "q"))
    for other in ((shared_seed("run", 4), "q"), (shared_seed("other", 3), "q"), (seed, "k")):
        assert not np.array_equal(basis, basis_of(kind, 64, 8, *other))
    assert np.allclose(np.square(basis).sum(1), 1, atol=1e-6)
    matrix = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    inside = expand(matrix, basis)
    assert np.allclose(inside, matrix @ basis, atol=1e-5)
    assert np.allclose(project(inside, basis), matrix, atol=1e-5)


def test_the_mean_of_coefficients_is_the_mean_of_updates() -> None:
    """Two sites that trained in the round's basis, a server, and a downlink of coefficients: nothing is lost."""
    spec, seed = CodecSpec.parse("subspace(rank=3)"), shared_seed("r", 1)
    sites = []
    for number in (1, 2):
        update = zeros(LAYOUT)
        for tensor in ("embed", "q", "up"):
            shape = LAYOUT.by_name[tensor].shape
            coefficients = np.random.default_rng(number).normal(size=(shape[0], 3)).astype(np.float32)
            update[tensor] = expand(coefficients, basis_of("random", shape[1], 3, seed, tensor))
        data, decoded = encode_update(update, LAYOUT, spec, header(site=f"s{number}"))
        assert all(np.allclose(decoded[n], update[n], atol=1e-5) for n in update)
        assert len(data) < 4 * 3 * (50 + 24 + 7) + 4 * 13 + 400
        sites.append(update)
    mean = {n: (sites[0][n] + sites[1][n]) / np.float32(2) for n in sites[0]}
    _, change, reached = encode_delta(mean, zeros(LAYOUT), LAYOUT, spec, header(Kind.DELTA))
    assert all(np.allclose(change[n], mean[n], atol=1e-5) for n in mean)
    assert equal(reached, change)
