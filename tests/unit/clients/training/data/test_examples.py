"""Rows, batches and their order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clients.site import Data
from clients.training.data.examples import load_examples, picks_for_steps
from clients.training.data.rows import read_rows
from clients.training.tasks import Example
from clients.training.tasks.classification import ClassificationTask
from clients.training.tasks.padding import pad_rows
from fedcompress.config.objective import Classification
from fedcompress.errors import ConfigError


class Letters:
    """A stand-in for a tokenizer: one token a letter."""

    pad_token_id = 0

    def __call__(self, text: str, *, truncation: bool, max_length: int) -> dict[str, Any]:
        assert truncation
        return {"input_ids": [ord(c) for c in text[:max_length]]}


def load(tmp_path: Path, lines: list[str] | bytes) -> list[Example]:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines if isinstance(lines, bytes) else "\n".join(lines).encode())
    data = Data(train=str(path), heldout=str(path))
    return load_examples(data, "train", ClassificationTask(Classification(labels=("a", "b")), data, Letters(), 4))


def test_rows(tmp_path: Path) -> None:
    rows = load(tmp_path, [json.dumps({"text": "hello", "label": "b"}), "", json.dumps({"text": "x", "label": "a"})])
    first, second = Example("rows.jsonl:1", [104, 101, 108, 108], [1], 1), Example("rows.jsonl:3", [120], [0], 1)
    assert rows == [first, second]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"SECRET', ["rows.jsonl:2: 8 bytes", "JSON object"]),
        ('{"text": "SECRET"}', ["rows.jsonl:2: a row without 'label'"]),
        ('["SECRET"]', ["rows.jsonl:2: list", "JSON object"]),
        ('{"text": "x", "label": "SECRET"}', ["rows.jsonl:2.label: another string", "one of ('a', 'b')"]),
        ('{"text": "x", "label": ["SECRET"]}', ["rows.jsonl:2.label: list", "one of ('a', 'b')"]),
        ('{"text": ["SECRET"], "label": "a"}', ["rows.jsonl:2.text: list: must be a string"]),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: str, words: list[str]) -> None:
    """And nothing of the row is in the message, which travels to the coordinator."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, ['{"text": "fine", "label": "a"}', line])
    for word in words:
        assert word in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        ("1", ("0", "1")),
        ("1.0", ("0", "1")),
        ("true", ("False", "True")),
        ("true", ("false", "true")),
        ("true", ("0", "1")),
        ('" 1 "', ("0", "1")),
        ('"1.0"', ("0", "1")),
        ('"-1.00"', ("1", "-1")),
        ('"1.0"', ("1", "1.0")),
        ("-1", ("1", "-1")),
        ("0.5", ("0.25", "0.5")),
    ],
)
def test_labels_that_are_numbers_or_truth_values(tmp_path: Path, value: str, labels: tuple[str, ...]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "t", "label": {value}}}')
    data = Data(train=str(path), heldout=str(path))
    rows = load_examples(data, "train", ClassificationTask(Classification(labels=labels), data, Letters(), 4))
    assert rows[0].labels == [1]


@pytest.mark.parametrize("value", ["2", "1.5", "null", '["1"]', '"1.5"', '"v1.0"'])
def test_labels_that_are_none_of_the_names(tmp_path: Path, value: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "t", "label": {value}}}')
    data = Data(train=str(path), heldout=str(path))
    with pytest.raises(ConfigError, match=r"rows.jsonl:1.label: .*must be one of \('0', '1'\)"):
        load_examples(data, "train", ClassificationTask(Classification(labels=("0", "1")), data, Letters(), 4))


SMALL = [["same"] * 8, ["a", "b"], [f"row {n}" for n in range(5)], ["z" * n for n in range(1, 20)]]


@pytest.mark.parametrize("texts", SMALL)
@pytest.mark.parametrize("share", [0.001, 0.1, 0.999])
def test_both_parts_of_a_small_site_have_rows(tmp_path: Path, texts: list[str], share: float) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "label": "a"}) for text in texts))
    data = Data(train=str(path), heldout_share=share)
    parts = [[row.where for row in read_rows(data, part)] for part in ("train", "heldout")]
    assert all(parts)
    assert sorted(parts[0] + parts[1]) == sorted(f"rows.jsonl:{n + 1}" for n in range(len(texts)))


def test_a_single_row_cannot_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "t", "label": "a"}')
    data = Data(train=str(path))
    task = ClassificationTask(Classification(labels=("a", "b")), data, Letters(), 4)
    with pytest.raises(ConfigError, match=r"0 rows: must have at least one; without data.heldout the source needs two"):
        load_examples(data, "heldout", task)


def test_another_encoding_is_a_bad_row(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rows.jsonl:2: 31 bytes: .*UTF-8"):
        load(tmp_path, b'{"text": "fine", "label": "a"}\n{"text": "caf\xe9", "label": "a"}\n')


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 rows: must have at least one"):
        load(tmp_path, [""])


def test_order_is_seeded_and_complete() -> None:
    one = list(picks_for_steps(10, 4, 5, 3))
    assert one == list(picks_for_steps(10, 4, 5, 3))
    assert one != list(picks_for_steps(10, 4, 5, 4))
    flat = [i for batch in one for i in batch]
    assert sorted(flat[:10]) == sorted(flat[10:20]) == list(range(10)), "every epoch sees every row"
    assert [len(b) for b in one] == [4] * 5


def test_batches_are_padded_and_masked() -> None:
    values, mask = pad_rows([[5], [7, 8, 9]], 0)
    assert values.tolist() == [[5, 0, 0], [7, 8, 9]]
    assert mask.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert pad_rows([[5], [7, 8, 9]], 0, left=True)[0].tolist() == [[0, 0, 5], [7, 8, 9]]


def test_the_heldout_part_is_cut_by_a_hash(tmp_path: Path) -> None:
    """Equal rows lie on one side, and a row that is added moves no other."""
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": f"row {i % 400}", "label": "a"}) for i in range(800)]
    path.write_text("\n".join(lines))
    data = Data(train=str(path), heldout_share=0.25)
    parts = {part: [row.values["text"] for row in read_rows(data, part)] for part in ("train", "heldout")}
    assert not set(parts["train"]) & set(parts["heldout"])
    assert len(parts["train"]) + len(parts["heldout"]) == 800
    assert 0.2 < len(parts["heldout"]) / 800 < 0.3
    path.write_text("\n".join(['{"text": "new", "label": "b"}', *lines]))
    again = [row.values["text"] for row in read_rows(data, "heldout")]
    assert [text for text in again if text != "new"] == parts["heldout"]
