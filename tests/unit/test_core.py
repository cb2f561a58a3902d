"""Types, pipeline, config, accounting, blobs, Flower records."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedcompress
from fedcompress.accounting import Traffic, bits_per_parameter
from fedcompress.adapters import seeded_init
from fedcompress.codecs import CodecSpec
from fedcompress.config import RunConfig, TrainTask, parse_run_config
from fedcompress.durable.blobs import BlobStore
from fedcompress.errors import ConfigError, HeaderError, LayoutError, MismatchError, NonFiniteError, StateError
from fedcompress.objective import Classification, objective_json
from fedcompress.pipeline import decode_state, encode_delta, encode_snapshot
from fedcompress.types import Layout, TensorSpec, from_bytes, state_digest, to_bytes
from tests.support import equal, lora_layout, normal, update_header

LAYOUT = lora_layout()


def test_layout_json_and_digest() -> None:
    assert Layout.from_json(LAYOUT.to_json()) == LAYOUT
    one = Layout((TensorSpec(name="a", shape=(2, 3), dtype="bfloat16", group="lora_a"),))
    assert one.to_json() == '[["a",[2,3],"bfloat16","lora_a"]]'
    assert one.digest == hashlib.sha256(one.to_json().encode()).digest()
    assert (one.numel, one.plain_bytes(2)) == (6, 12)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '[["a"]]',
        '[["a",[2],"int4","head"]]',
        '[["a",[2],"float32","x"]]',
        '[["",[2],"float32","head"]]',
        '[["a",[-1],"float32","head"]]',
        '[["a",[2],"float32","head"],["a",[2],"float32","head"]]',
        '[["a",[1099511627777],"float32","head"]]',
    ],
)
def test_bad_layouts(text: str) -> None:
    with pytest.raises(LayoutError):
        Layout.from_json(text)


def test_check_names_the_tensor() -> None:
    values = normal(LAYOUT, 0)
    LAYOUT.check(values, what="x")
    with pytest.raises(LayoutError, match="names or order"):
        LAYOUT.check(dict(reversed(values.items())), what="x")
    values["head.bias"][0] = np.nan
    with pytest.raises(NonFiniteError, match=r"head\.bias"):
        LAYOUT.check(values, what="x")


def test_state_digest_sees_every_bit_but_the_sign_of_zero() -> None:
    values = normal(LAYOUT, 0)
    digest = state_digest(LAYOUT, values)
    values["head.bias"][1] = np.nextafter(values["head.bias"][1], np.float32(9))
    assert state_digest(LAYOUT, values) != digest
    zeros = {n: np.zeros_like(v) for n, v in values.items()}
    assert state_digest(LAYOUT, zeros) == state_digest(LAYOUT, {n: -v for n, v in zeros.items()})


def test_flat_bytes() -> None:
    values = normal(LAYOUT, 0)
    assert equal(from_bytes(to_bytes(values), LAYOUT), values)
    with pytest.raises(StateError, match="the layout needs"):
        from_bytes(to_bytes(values)[:-1], LAYOUT)


def test_states_travel_as_seed_snapshot_or_delta() -> None:
    start = seeded_init(LAYOUT, 9)
    seeded = encode_snapshot(start, LAYOUT, run="r", version=0, init_seed=9)
    exact = encode_snapshot(start, LAYOUT, run="r", version=0, init_seed=8)
    assert len(seeded) < 200 < 4 * LAYOUT.numel < len(exact)
    for data in (seeded, exact):
        assert equal(decode_state(data, LAYOUT, None)[1], start)
    change = normal(LAYOUT, 1)
    header = replace(update_header(LAYOUT, start), site="", result_digest=b"0" * 32)
    data, decoded, reached = encode_delta(change, start, LAYOUT, CodecSpec.parse("lora-ternary"), header)
    envelope, state = decode_state(data, LAYOUT, start)
    assert equal(state, reached)
    assert envelope.header.result_digest == state_digest(LAYOUT, reached)
    assert all(np.array_equal(start[n] + decoded[n], state[n]) for n in state)
    for wrong in (None, change):
        with pytest.raises(MismatchError, match="base_digest") as caught:
            decode_state(data, LAYOUT, wrong)
        assert caught.value.code == "base-digest"


TASK = TrainTask(
    run="r",
    round=1,
    version=0,
    steps=1,
    batch_size=2,
    lr=0.1,
    optimizer="adamw8bit",
    codec="none",
    feedback=1.0,
    max_length=8,
    objective=objective_json(Classification(labels=("a", "b"))),
    seed=0,
    adapter_config="{}",
    layout=LAYOUT.to_json(),
    merged=("ab",),
)


def test_tasks_round_trip() -> None:
    assert TrainTask.from_json(TASK.to_json()) == TASK


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"protocol": 1}, "task.protocol: 1"),
        ({"run": "../x"}, "task.run"),
        ({"batch_size": 0}, "task.batch_size: 0"),
        ({"lr": float("nan")}, "task.lr: nan"),
        ({"steps": -1}, "task.steps: -1"),
        ({"optimizer": "adam"}, "task.optimizer: adam"),
        ({"objective": "{}"}, "task.objective"),
        ({"objective": '{"labels":["a","a"],"name":"classification"}'}, "objective.labels"),
        ({"objective": '{"head":"cls","labels":["a","b"],"name":"classification"}'}, "objective.head: cls"),
        ({"schedule": "step"}, "task.schedule: step"),
        ({"correction": "fedprox(mu=0)"}, "correction.fedprox.mu"),
        ({"codec": "zip"}, "task.codec"),
        ({"feedback": 2.0}, "feedback.decay: 2.0"),
    ],
)
def test_bad_tasks(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        replace(TASK, **changes)


def test_a_task_that_is_not_one() -> None:
    for text in ("", "{}", "[]", TASK.to_json().replace('"round"', '"lap"')):
        with pytest.raises(ConfigError, match=r"^task: "):
            TrainTask.from_json(text)


FLAT = {"run": "r", "state-dir": "s", "initial-adapter": "i"}


def test_run_config_matches_pyproject() -> None:
    """The app's defaults are the library's; Flower can override only keys that are listed."""
    import tomllib

    listed = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    config = parse_run_config({**listed, **FLAT})
    assert config == RunConfig(run="r", state_dir="s", initial_adapter="i")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"roundz": 3}, "roundz: 3: unknown key"),
        ({"rounds": "3"}, "rounds: '3': must be of type int"),
        ({"rounds": True}, "rounds: True: must be of type int"),
        ({"rounds": 0}, "rounds: 0: must be above 0"),
        ({"quorum": 0}, "quorum: 0"),
        ({"codec": "zip"}, "codec: zip"),
        ({"downlink-codec": "zip"}, "downlink-codec: zip"),
        ({"rule": "tiers"}, "rule: tiers"),
        ({"optimizer": "x"}, "optimizer: x"),
        ({"initial-adapter": ""}, "initial-adapter: '': must be set"),
        ({"schedule": "linear(warmup=-1)"}, "schedule.warmup"),
        ({"run": "a b"}, "run: 'a b'"),
    ],
)
def test_bad_run_configs(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_run_config({**FLAT, **changes})


def test_baselines_are_exact() -> None:
    traffic = Traffic(messages=6, payload=1000)
    assert traffic.baseline(LAYOUT, "bf16") == 6 * 2 * LAYOUT.numel
    assert traffic.ratio(LAYOUT, "fp32") == 6 * 4 * LAYOUT.numel / 1000
    assert traffic.baseline(LAYOUT, "int8") == 6 * LAYOUT.numel
    assert Traffic(messages=0, payload=0).ratio(LAYOUT, "bf16") == 0
    assert bits_per_parameter(LAYOUT.numel, LAYOUT) == 8


def test_blobs(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    name = store.put(b"abc")
    assert name == hashlib.sha256(b"abc").hexdigest() == store.put(b"abc")
    assert store.get(name) == b"abc"
    other = store.put(b"other")
    (tmp_path / "blobs" / "half.1.part").write_bytes(b"torn")
    assert store.keep_only([name]) == 2
    with pytest.raises(StateError, match="cannot be read"):
        store.get(other)


def test_payloads_in_flower_records() -> None:
    from flwr.app import Array, ArrayRecord, RecordDict

    from fedcompress.flower import CONFIG, PAYLOAD, from_records, require_version, to_records

    records = to_records({"task": "t", "n": 1}, b"payload")
    assert from_records(records) == ({"task": "t", "n": 1}, b"payload")
    assert from_records(to_records({"a": True}, b"")) == ({"a": True}, b"")
    array = records.array_records[PAYLOAD]["data"]
    with pytest.raises(TypeError):
        array.numpy()  # an accidental average over bytes fails
    with pytest.raises(HeaderError, match=CONFIG):
        from_records(RecordDict())
    records[PAYLOAD] = ArrayRecord({"data": Array(np.zeros(3, np.uint8))})
    with pytest.raises(HeaderError, match="stype"):
        from_records(records)
    require_version(fedcompress.__version__)
    with pytest.raises(MismatchError, match=r"the app needs 9\.9"):
        require_version("9.9")


def test_the_apps_need_this_library() -> None:
    import clients
    import server

    assert clients.LIBRARY == server.LIBRARY == fedcompress.__version__


def test_public_names_are_importable() -> None:
    assert all(getattr(fedcompress, name) is not None for name in fedcompress.__all__)
    assert dir(fedcompress) == sorted(fedcompress.__all__)
    with pytest.raises(AttributeError):
        fedcompress.nothing  # noqa: B018
