"""Rows, batches and their order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clients.site import Data
from clients.training.data import Rows, collate, load_rows, picks_for_steps
from fedcompress.errors import ConfigError


def tokenizer(texts: list[str], *, truncation: bool, max_length: int) -> dict[str, Any]:
    """A stand-in: one token a letter."""
    assert truncation
    return {"input_ids": [[ord(c) for c in t[:max_length]] for t in texts]}


def load(tmp_path: Path, lines: list[str]) -> Rows:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    return load_rows(path, Data(train=path, heldout=path), ("a", "b"), tokenizer, 4)


def test_rows(tmp_path: Path) -> None:
    rows = load(tmp_path, [json.dumps({"text": "hello", "label": "b"}), "", json.dumps({"text": "x", "label": "a"})])
    assert rows == Rows([[104, 101, 108, 108], [120]], [1, 0])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"SECRET', ["rows.jsonl:2: 8 bytes", "JSON object"]),
        ('{"text": "SECRET"}', ["rows.jsonl:2: 18 bytes", "'label'"]),
        ('["SECRET"]', ["rows.jsonl:2: 10 bytes", "JSON object"]),
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


def test_another_encoding_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "fine", "label": "a"}\n{"text": "caf\xe9", "label": "a"}\n')
    with pytest.raises(ConfigError, match=r"rows.jsonl:2: 31 bytes: .*UTF-8"):
        load_rows(path, Data(train=path, heldout=path), ("a", "b"), tokenizer, 4)


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


def test_collate_pads_and_masks() -> None:
    ids, mask, labels = collate(Rows([[7, 8, 9], [5]], [1, 0]), [1, 0], pad=0)
    assert ids.tolist() == [[5, 0, 0], [7, 8, 9]]
    assert mask.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert labels.tolist() == [0, 1]
