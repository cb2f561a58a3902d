"""A round at a site goes one way, whether an adapter is trained or weights of the base."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clients.signing import SiteIdentity
from clients.state import run_tensors
from clients.state.run_tensors import RunSnapshot, StreamedSnapshot
from fedcompress.adapters.full.modes import Full, trainable_set_config
from fedcompress.config.train_task import TrainTask
from fedcompress.identity import PrivateKey
from fedcompress.pipeline.states import encode_snapshot
from fedcompress.pipeline.updates import decode_update
from fedcompress.types import add, l2_norm, zeros
from fedcompress.wire import Limits, seal_of
from tests.unit.clients.site_support import FakeSite
from tests.unit.config.test_train_task import TASK
from tests.unit.slices import LAYOUT, LIMITS

pytestmark = pytest.mark.usefixtures("small_slices")
CONFIGS = {"adapter": {"peft_type": "LORA"}, "weights": trainable_set_config(Full())}


def bundle() -> bytes:
    return encode_snapshot(zeros(LAYOUT), LAYOUT, run="r", version=0)


def task(kind: str, **changes: object) -> TrainTask:
    config = json.dumps(CONFIGS[kind])
    return replace(TASK, layout=LAYOUT.to_json(), adapter_config=config, merged=(), codec="int8", **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_reply_is_signed_and_what_it_leaves_out_is_kept(tmp_path: Path, kind: str) -> None:
    site = FakeSite(tmp_path, "north")
    key = PrivateKey.new("north")
    site.identity = SiteIdentity(key, None)
    payload = site.answer(task(kind), bundle())
    seal = seal_of(payload, LIMITS)
    assert key.public.verifies(seal.signature, seal.statement)
    held = site.session.snapshot("r")
    assert isinstance(held, StreamedSnapshot if kind == "weights" else RunSnapshot)
    sent = decode_update(payload, LAYOUT)[1]
    whole = add(sent, dict(held.residual))
    assert all(np.allclose(whole[n], v, atol=1e-6) for n, v in site.deltas.items())
    assert any(v.any() for v in held.residual.values())


@pytest.mark.parametrize("codec", ["int8", "topk(density=0.1)|ternary"])
def test_both_ways_send_the_same_bytes(tmp_path: Path, codec: str) -> None:
    """Also of a norm that is clipped, of tensors that are cut."""
    payloads = []
    for kind in CONFIGS:
        site = FakeSite(tmp_path / kind, "north")
        site._config = replace(site._config, max_update_norm=0.5)
        site._start()
        job = replace(task(kind), codec=codec, feedback=0.9)
        payloads.append(site.answer(job, bundle()))
    adapter, weights = (decode_update(p, LAYOUT, Limits.for_numel(LAYOUT.numel))[1] for p in payloads)
    assert all(np.array_equal(adapter[n], weights[n]) for n in adapter)
    assert 0 < l2_norm(adapter.values()) <= 0.51 or codec != "int8"


def test_a_residual_of_fewer_bits_needs_tensors_in_memory(tmp_path: Path) -> None:
    from fedcompress.errors import ConfigError

    site = FakeSite(tmp_path, "north")
    with pytest.raises(ConfigError, match=r"task\.residual_store: int8: must be none"):
        site.answer(task("weights", residual_store="int8"), bundle())


@pytest.mark.parametrize("kind", CONFIGS)
def test_encoders_start_from_the_update_before_only_in_memory(tmp_path: Path, kind: str) -> None:
    """Where tensors stay on the disk no whole update is decoded, so that encoders that iterate start anew."""
    site = FakeSite(tmp_path, "north")
    site.answer(replace(task(kind), codec="powersgd(rank=2)"), bundle())
    last = site.session.last_sent("r")
    assert (last is None) == (kind == "weights")


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_digest_that_is_known_is_carried(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state that is held already is hashed once for a request, and one that is followed not again."""
    site = FakeSite(tmp_path, "north")
    assert site.session.apply_downlink("r", LAYOUT, bundle(), on_disk=kind == "weights").checked_digest
    hashed = []
    count = run_tensors.streamed_state_digest
    monkeypatch.setattr(run_tensors, "streamed_state_digest", lambda *a: hashed.append(1) or count(*a))
    site.answer(task(kind), bundle())
    assert len(hashed) == 1
