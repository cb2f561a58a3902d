"""Tokens on disk: equal to those in memory, written once, shared by ranks, and never stale."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clients.data_sources import JsonLines
from clients.site import Data
from clients.training.data.examples import Place, load_examples, row_count
from clients.training.data.token_store import TokenStore, shared_store, write_store
from clients.training.tasks import Example
from clients.training.tasks.classification import ClassificationTask
from fedcompress.config.objective import Classification
from fedcompress.errors import ConfigError, StateError


class Letters:
    """A stand-in for a tokenizer: one token a letter."""

    pad_token_id = 0

    def __call__(self, text: str, *, truncation: bool, max_length: int) -> dict[str, Any]:
        assert truncation
        return {"input_ids": [ord(c) for c in text[:max_length]]}


EXAMPLES = [Example(f"r\u00e9sum\u00e9.jsonl:{i}", list(range(i)), [i, -100], i) for i in range(5)]


def site(tmp_path: Path, **options: Any) -> Data:
    path = tmp_path / "rows.jsonl"
    if not path.exists():
        path.write_text("\n".join(json.dumps({"text": "x" * i, "label": "a"}) for i in range(40)))
    return Data(train=str(path), heldout_share=0.3, **options)


def load(data: Data, folder: Path, recipe: str = "one", part: str = "train", **options: Any) -> Any:
    task = ClassificationTask(Classification(labels=("a", "b")), data, Letters(), 24)
    return load_examples(data, part, task, Place(folder=folder, recipe=lambda: recipe), **options)


@pytest.mark.parametrize("examples", [EXAMPLES, EXAMPLES[:1], []])
def test_what_is_read_is_what_was_written(tmp_path: Path, examples: list[Example]) -> None:
    write_store(tmp_path / "train", "digest", iter(examples))
    store = TokenStore(tmp_path / "train")
    assert list(store) == examples
    assert store[1:] == examples[1:]
    assert store.lengths().tolist() == [len(e.tokens) for e in examples]
    if examples:
        assert store[-1] == examples[-1]
    with pytest.raises(IndexError):
        store[len(examples)]


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_streaming_changes_nothing_but_where_tokens_are(tmp_path: Path, part: str) -> None:
    plain = load(site(tmp_path), tmp_path / "a", part=part)
    streamed = load(site(tmp_path, streaming=True), tmp_path / "b", part=part)
    assert isinstance(plain, list)
    assert isinstance(streamed, TokenStore)
    assert list(streamed) == plain
    assert row_count(streamed) == row_count(plain) == len(plain)
    assert not (tmp_path / "a").exists()
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [part, f"{part}.lock"]


def test_a_large_source_is_streamed_anyway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.training.data.examples.MIB", 1)
    assert isinstance(load(site(tmp_path, streaming_above=200), tmp_path / "a"), TokenStore)
    assert isinstance(load(site(tmp_path, streaming_above=0), tmp_path / "a"), list)
    assert isinstance(load(site(tmp_path, streaming_above=1 << 20), tmp_path / "a"), list)


def test_tokens_are_used_again_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    rows = JsonLines.rows
    monkeypatch.setattr(JsonLines, "rows", lambda self: read.append("") or rows(self))

    def reads(recipe: str = "one", **options: Any) -> int:
        read.clear()
        load(site(tmp_path, streaming=True, **options), tmp_path / "tokens", recipe)
        return len(read)

    assert [reads(), reads(), reads()] == [1, 0, 0]
    assert [reads("two"), reads("two"), reads()] == [1, 0, 1], "another tokenizer, length or objective"
    assert [reads(prompt="asked"), reads(prompt="asked"), reads()] == [1, 0, 1], "other names of fields"
    os.utime(tmp_path / "rows.jsonl", ns=(1, 1))
    assert [reads(), reads()] == [1, 0], "the file was written again"
    (tmp_path / "tokens" / "train" / "tokens.bin").write_bytes(b"torn")
    assert [reads(), reads()] == [1, 0], "the store was damaged"
    (tmp_path / "tokens" / "train" / "meta.json").write_text("[")
    assert [reads(), reads()] == [1, 0]


def test_what_has_no_stamp_is_never_taken_from_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stampless.py").write_text(
        "calls = []\ndef given(part):\n    calls.append(part)\n    yield {'text': 'x' * len(calls), 'label': 'a'}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    data = Data(train="stampless:given", heldout="stampless:given", streaming=True)
    assert [len(load(data, tmp_path / "tokens")[0].tokens) for _ in range(2)] == [1, 2]
    import stampless  # type: ignore[import-not-found]

    stampless.given.version = 7
    assert [len(load(data, tmp_path / "tokens")[0].tokens) for _ in range(2)] == [3, 3]


def test_a_bad_row_leaves_no_store(tmp_path: Path) -> None:
    data = site(tmp_path, streaming=True)
    good = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(good + '\n{"SECRET')
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"rows.jsonl:41: 8 bytes"):
            load(data, tmp_path / "tokens")
    assert not (tmp_path / "tokens" / "train").exists()
    assert not list((tmp_path / "tokens").glob("*.part"))
    (tmp_path / "rows.jsonl").write_text(good)
    assert len(load(data, tmp_path / "tokens")) > 20


def test_long_work_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.training.data.examples.REPORT", -1.0)
    for streaming in (True, False):
        said: list[dict[str, Any]] = []
        found = load(
            site(tmp_path, streaming=streaming), tmp_path / "t", progress=lambda said=said, **f: said.append(f)
        )
        assert said[-1] == {"phase": "load", "text": f"train: {len(found)} rows tokenized"}


def rank_of_two(rank: int, folder: str, bad: bool, out: Any) -> None:
    """A process of two that meet by gloo."""
    import torch

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    made: list[int] = []

    def examples() -> Iterator[Example]:
        made.append(rank)
        yield EXAMPLES[0]
        if bad:
            raise ConfigError("rows.jsonl:2", "8 bytes", "must be a JSON object")
        yield from EXAMPLES[1:]

    try:
        store = shared_store(Path(folder) / "train", "digest", examples, rank=rank, world=2)
        out.put((rank, made, list(store) == EXAMPLES))
    except ConfigError as error:
        out.put((rank, made, str(error)))


@pytest.mark.parametrize("bad", [False, True])
def test_rank_0_writes_and_the_other_waits(tmp_path: Path, bad: bool) -> None:
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    processes = [context.Process(target=rank_of_two, args=(rank, str(tmp_path), bad, out)) for rank in (0, 1)]
    for process in processes:
        process.start()
    found = sorted(out.get(timeout=90) for _ in processes)
    for process in processes:
        process.join(timeout=30)
    ended = "rows.jsonl:2: 8 bytes: must be a JSON object" if bad else True
    assert found == [(0, [0], ended), (1, [], ended)]


def test_a_rank_whose_store_is_missing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.training.data.token_store._meet", lambda world: None)
    with pytest.raises(StateError, match="rank 0 has written none"):
        shared_store(tmp_path / "train", "digest", lambda: iter(EXAMPLES), rank=1, world=2)
