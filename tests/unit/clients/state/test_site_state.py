"""What a site must not lose, across lost replies, unmerged rounds and restarts."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from clients.state import site_state as session_module
from clients.state.site_state import SiteState
from fedcompress.adapters.constants import constants_digest
from fedcompress.codecs import CodecSpec
from fedcompress.config.objective import Classification, objective_json
from fedcompress.config.train_task import TrainTask
from fedcompress.errors import AccessError, MismatchError, StateError
from fedcompress.pipeline.states import encode_constants, encode_delta, encode_snapshot
from fedcompress.pipeline.updates import decode_update
from fedcompress.types import Tensors, add, zeros
from fedcompress.wire import Header, Kind, Limits, digest_of, unpack
from tests.support import equal, lora_layout, no_descriptors, normal
from tests.unit.clients.site_support import FakeSite

LAYOUT = lora_layout(modules=1)
START = normal(LAYOUT, 0)
SNAPSHOT = encode_snapshot(START, LAYOUT, run="run", version=0)


def chain(count: int) -> tuple[list[bytes], list[Tensors]]:
    """Deltas of versions 1..count, and all states."""
    states, deltas = [START], []
    for version in range(1, count + 1):
        header = Header(
            kind=Kind.DELTA,
            run="run",
            round=version,
            version=version,
            codec="",
            layout_digest=LAYOUT.digest,
            base_digest=b"0" * 32,
            result_digest=b"0" * 32,
        )
        change = normal(LAYOUT, version, 0.1)
        data, _, state = encode_delta(change, states[-1], LAYOUT, CodecSpec.parse("lora-ternary"), header)
        deltas.append(data)
        states.append(state)
    return deltas, states


DELTAS, STATES = chain(3)


def task(round_: int, *merged: str, codec: str = "lora-ternary", steps: int = 1, version: int = 0) -> TrainTask:
    return TrainTask(
        run="run",
        round=round_,
        version=version,
        steps=steps,
        batch_size=1,
        lr=1.0,
        optimizer="sgd",
        codec=codec,
        feedback=1.0,
        max_length=8,
        objective=objective_json(Classification(labels=("a", "b"))),
        seed=0,
        adapter_config=json.dumps({}),
        layout=LAYOUT.to_json(),
        merged=merged,
    )


def test_receive_walks_the_chain_and_survives_a_restart(tmp_path: Path) -> None:
    session = SiteState(tmp_path)
    assert session.snapshot("run") is None
    assert equal(session.apply_downlink("run", LAYOUT, SNAPSHOT).state, START)
    held = session.apply_downlink("run", LAYOUT, DELTAS[0] + DELTAS[1])
    assert held.version == 2
    session.close()
    session = SiteState(tmp_path)
    again = session.snapshot("run")
    assert again is not None
    assert equal(again.state, STATES[2])
    assert session.apply_downlink("run", LAYOUT, DELTAS[1]).version == 2, "what is held already changes nothing"
    assert equal(session.apply_downlink("run", LAYOUT, SNAPSHOT + b"".join(DELTAS)).state, STATES[3])


def test_a_downlink_that_does_not_fit(tmp_path: Path) -> None:
    session = SiteState(tmp_path)
    with pytest.raises(MismatchError, match="holds nothing") as caught:
        session.apply_downlink("run", LAYOUT, DELTAS[0])
    assert caught.value.code == "base-digest"
    session.apply_downlink("run", LAYOUT, SNAPSHOT)
    with pytest.raises(MismatchError, match="holds version 0"):
        session.apply_downlink("run", LAYOUT, DELTAS[2])
    with pytest.raises(MismatchError, match="layout"):
        session.apply_downlink("run", lora_layout(modules=2), SNAPSHOT)
    held = session.snapshot("run")
    assert held is not None
    assert equal(held.state, START)


def test_replay_until_the_next_round(tmp_path: Path) -> None:
    site = FakeSite(tmp_path, "north")
    first = site.answer(task(1), SNAPSHOT)
    site.reopen()
    assert site.answer(task(1), SNAPSHOT) == first
    assert site.trained == 1
    second = site.answer(task(2, digest_of(first).hex()), SNAPSHOT)
    assert second != first
    assert site.trained == 2


def test_the_same_round_from_another_state_is_trained_again(tmp_path: Path) -> None:
    """The coordinator went on from elsewhere: the old reply goes back into the residual."""
    site = FakeSite(tmp_path, "north")
    first = site.answer(task(1), SNAPSHOT)
    second = site.answer(task(1, version=1), DELTAS[0])
    assert site.trained == 2
    assert first != second
    check_invariant(site, [])


def check_invariant(site: FakeSite, merged: list[bytes]) -> None:
    """sum(merged) + open update + residual == sum(delta)."""
    held = site.session.snapshot("run")
    assert held is not None
    total = held.residual
    rows = site.session._db.execute("SELECT digest, blob FROM outbox WHERE status='open'").fetchall()
    done = {digest_of(m).hex() for m in merged}
    payloads = [*merged, *(site.session._blobs.get(blob) for digest, blob in rows if digest not in done)]
    for payload in payloads:
        total = add(total, decode_update(payload, LAYOUT)[1])
    for name, value in site.deltas.items():
        assert np.allclose(total[name], value, atol=1e-5), name


@settings(max_examples=40, deadline=None)
@given(fates=st.lists(st.sampled_from(["merged", "unmerged", "lost", "restart", "repeat"]), min_size=1, max_size=12))
def test_nothing_is_lost_or_counted_twice(fates: list[str]) -> None:
    with TemporaryDirectory() as folder:
        site = FakeSite(Path(folder), "north")
        merged: list[bytes] = []
        round_ = 1
        for fate in fates:
            last = (digest_of(merged[-1]).hex(),) if merged else ()
            request = task(round_, *last)
            payload = site.answer(request, SNAPSHOT)
            match fate:
                case "merged":
                    merged.append(payload)
                case "restart":
                    site.reopen()
                    assert site.answer(request, SNAPSHOT) == payload
                    merged.append(payload)
                case "repeat":
                    assert site.answer(request, SNAPSHOT) == payload
            round_ += 1
            check_invariant(site, merged)
        site.session.close()


def test_a_crash_before_the_commit_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = FakeSite(tmp_path, "north")
    first = site.answer(task(1), SNAPSHOT)

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SiteState, "commit", crash)
        with pytest.raises(KeyboardInterrupt):
            site.answer(task(2, digest_of(first).hex()), SNAPSHOT)
    site.deltas = {n: v for n, v in decode_total(site, [first]).items()}
    site.reopen()
    held = site.session.snapshot("run")
    assert held is not None
    second = site.answer(task(2, digest_of(first).hex()), SNAPSHOT)
    check_invariant(site, [first, second])


def decode_total(site: FakeSite, merged: list[bytes]) -> Tensors:
    """What the site's books say: merged plus residual."""
    held = site.session.snapshot("run")
    assert held is not None
    total = held.residual
    for payload in merged:
        total = add(total, decode_update(payload, LAYOUT)[1])
    return total


@pytest.mark.parametrize("is_damaged", [False, True])
def test_what_was_given_back_and_merged_is_not_sent_again(tmp_path: Path, is_damaged: bool) -> None:
    """In the reply to the very task that says that it was merged, too."""
    site = FakeSite(tmp_path, "north")
    first = site.answer(task(1), SNAPSHOT)
    site.answer(task(2, steps=0), SNAPSHOT)
    back = site.session.snapshot("run")
    assert back is not None
    if is_damaged:
        (blob,) = (path for path in (tmp_path / "north" / "blobs").iterdir() if path.read_bytes() == first)
        blob.write_bytes(first[:-1])
        site.deltas = decode_update(first, LAYOUT)[1]  # what it had left out is lost
    third = site.answer(task(3, digest_of(first).hex()), SNAPSHOT)
    assert site.trained == 2
    check_invariant(site, [first, third])


def test_a_reply_in_another_codec_is_given_back(tmp_path: Path) -> None:
    """The run was resumed with another one, and its open round is asked for again: the old reply would be refused."""
    site = FakeSite(tmp_path, "north")
    first = site.answer(task(1), SNAPSHOT)
    second = site.answer(task(1, codec="int(bits=4)"), SNAPSHOT)
    assert site.trained == 2
    assert unpack(second, Limits.for_numel(LAYOUT.numel)).header.codec == str(CodecSpec.parse("int(bits=4)"))
    check_invariant(site, [])
    assert site.answer(task(1, codec="int(bits=4)"), SNAPSHOT) == second != first


def test_what_can_be_done_without_may_be_damaged(tmp_path: Path) -> None:
    """What a code that iterates starts from; and constants, which are asked for again."""
    site = FakeSite(tmp_path, "north")
    tensors = {"scale": np.ones(3, np.float32)}
    data, digest = save(tensors), constants_digest(tensors)
    site.session.apply_downlink("run", LAYOUT, encode_constants(data, digest, run="run") + SNAPSHOT)
    site.answer(task(1), SNAPSHOT)
    assert site.session.constants("run", digest) == data
    assert site.session.last_sent("run") is not None
    for path in (tmp_path / "north" / "blobs").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert site.session.constants("run", digest) is None
    assert site.session.last_sent("run") is None


def test_a_changed_blob_is_found(tmp_path: Path) -> None:
    session = SiteState(tmp_path)
    session.apply_downlink("run", LAYOUT, SNAPSHOT)
    (name,) = session._db.execute("SELECT state FROM run").fetchone()
    path = tmp_path / "blobs" / name
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    with pytest.raises(StateError, match="SHA-256 does not match"):
        session.snapshot("run")
    path.unlink()
    with pytest.raises(StateError, match="cannot be read"):
        session.apply_downlink("run", LAYOUT, DELTAS[0])
    assert equal(session.apply_downlink("run", LAYOUT, SNAPSHOT + DELTAS[0]).state, STATES[1])


def test_a_file_that_cannot_be_opened_now_is_not_a_damaged_one(tmp_path: Path) -> None:
    """A process that is out of descriptors must not give up a residual, or take its reply for a changed one."""
    site = FakeSite(tmp_path, "north")
    site.answer(task(1), SNAPSHOT)
    before = site.session.residual("run", LAYOUT)
    with no_descriptors():
        with pytest.raises(AccessError, match="cannot be opened now: Too many open files"):
            site.session.apply_downlink("run", LAYOUT, SNAPSHOT)
        with pytest.raises(AccessError, match="cannot be opened now: Too many open files"):
            site.session.last_sent("run")
    assert equal(site.session.residual("run", LAYOUT), before)
    assert site.session.find_reply("run", 1, site.session.snapshot("run").digest) is not None


def test_a_changed_reply_is_found_and_healed_by_a_snapshot(tmp_path: Path) -> None:
    """It can be neither replayed nor given back: without a snapshot the site says so, with one it starts anew."""
    site = FakeSite(tmp_path, "north")
    site.answer(task(1), SNAPSHOT)
    ((blob,),) = site.session._db.execute("SELECT blob FROM outbox").fetchall()
    path = tmp_path / "north" / "blobs" / blob
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StateError, match="SHA-256 does not match"):
        site.session.apply_downlink("run", LAYOUT, DELTAS[0])
    held = site.session.apply_downlink("run", LAYOUT, SNAPSHOT + DELTAS[0])
    assert (held.version, equal(held.state, STATES[1])) == (1, True)
    assert equal(held.residual, zeros(LAYOUT))
    site.answer(task(2, version=1), DELTAS[0])
    assert site.trained == 2


def test_a_version_that_changed_nothing_is_a_version(tmp_path: Path) -> None:
    """The coordinator's step was zero: two versions with one digest."""
    session = SiteState(tmp_path)
    session.apply_downlink("run", LAYOUT, SNAPSHOT)
    header = Header(
        kind=Kind.DELTA,
        run="run",
        round=1,
        version=1,
        codec="",
        layout_digest=LAYOUT.digest,
        base_digest=b"0" * 32,
        result_digest=b"0" * 32,
    )
    delta, _, _ = encode_delta(zeros(LAYOUT), START, LAYOUT, CodecSpec.parse("none"), header)
    assert session.apply_downlink("run", LAYOUT, delta).version == 1
    session.close()
    held = SiteState(tmp_path).snapshot("run")
    assert held is not None
    assert (held.version, equal(held.state, START)) == (1, True)


class Killed(BaseException):
    """The worker's process is gone."""


def history(site: FakeSite) -> list[bytes]:
    """Four rounds: one merged, two lost, one merged; the state moves on in between. Every request comes again if it
    fails."""
    payloads: list[bytes] = []
    steps = ((0, SNAPSHOT, ()), (1, DELTAS[0], (0,)), (1, DELTAS[0], (0,)), (2, DELTAS[1], (0,)))
    for round_, (version, bundle, merged) in enumerate(steps, start=1):
        request = task(round_, *(digest_of(payloads[i]).hex() for i in merged), version=version)
        try:
            payloads.append(site.answer(request, bundle))
        except Killed:
            site.reopen()
            payloads.append(site.answer(request, bundle))
    return payloads


@pytest.mark.parametrize("number", range(1, 11))
def test_killed_at_any_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """All blobs are written, the transaction is not committed: asked again, the site ends with the same bytes."""
    plain = FakeSite(tmp_path / "plain", "north")
    expected, expected_held = history(plain), plain.session.snapshot("run")
    original, count = session_module.transaction, 0

    @contextmanager
    def torn(database: sqlite3.Connection) -> Iterator[None]:
        nonlocal count
        count += 1
        with original(database):
            yield
            if count == number:
                raise Killed

    monkeypatch.setattr(session_module, "transaction", torn)
    site = FakeSite(tmp_path / "killed", "north")
    assert history(site) == expected
    held = site.session.snapshot("run")
    assert held is not None
    assert expected_held is not None
    assert count > 10, "the history has as many transactions as the test has cases, and one more for the second try"
    assert equal(held.residual, expected_held.residual)
    assert equal(held.state, expected_held.state)


def test_garbage_is_collected(tmp_path: Path) -> None:
    site = FakeSite(tmp_path, "north")
    last: tuple[str, ...] = ()
    for round_ in range(1, 25):
        payload = site.answer(task(round_, *last), SNAPSHOT)
        last = (digest_of(payload).hex(),)
    assert len(list((tmp_path / "north" / "blobs").iterdir())) < 16
    assert zeros(LAYOUT).keys() == site.deltas.keys()
