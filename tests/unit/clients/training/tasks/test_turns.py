"""Rows of language models in the forms that people have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clients.data_sources import Row
from clients.site import Data
from clients.training.tasks.turns import read_pair, read_turns
from fedcompress.errors import ConfigError

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
]
SHAREGPT = [
    {"from": "system", "value": "Be kind."},
    {"from": "human", "value": "Hi"},
    {"from": "gpt", "value": "Hello."},
]
ADDED = [{"role": "user", "content": "Add\n\n1 2"}, {"role": "assistant", "content": "3"}]
WHOLE = [{"role": "assistant", "content": "A whole text."}]
PAIR = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


@pytest.fixture
def data(tmp_path: Path) -> Data:
    (tmp_path / "x.jsonl").write_text("{}")
    return Data(train=str(tmp_path / "x.jsonl"))


def row(**values: Any) -> Row:
    return Row("x.jsonl:1", values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"messages": CHAT}, CHAT),
        ({"messages": json.dumps(CHAT)}, CHAT),
        ({"messages": [{**turn, "name": None, "tool_calls": None} for turn in CHAT]}, CHAT),
        ({"messages": [{**t, "content": [{"type": "text", "text": t["content"]}]} for t in CHAT]}, CHAT),
        ({"messages": [{**t, "content": [{"type": "text", "text": c} for c in t["content"]]} for t in CHAT]}, CHAT),
        ({"conversations": SHAREGPT}, CHAT),
        ({"messages": SHAREGPT}, CHAT),
        ({"conversations": CHAT, "messages": None}, CHAT),
        ({"messages": None, "conversations": None, "prompt": "Hi", "completion": "Hello."}, PAIR),
        ({"instruction": "Hi", "input": "", "output": "Hello."}, PAIR),
        ({"instruction": "Hi", "input": None, "output": "Hello.", "prompt": None}, PAIR),
        ({"instruction": "Hi", "output": "Hello."}, PAIR),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, ADDED),
        ({"conversations": "id-17", "prompt": "Hi", "completion": "Hello."}, PAIR),
        ({"conversations": SHAREGPT, "prompt": "Hi", "completion": "Hello."}, PAIR),
        ({"conversations": SHAREGPT, "instruction": "Add", "output": "3"}, CHAT),
        ({"instruction": "Hi", "output": "Hello.", "text": "both in one"}, PAIR),
        ({"instruction": "a column of something else", "text": "A whole text."}, WHOLE),
        ({"text": "A whole text."}, WHOLE),
    ],
)
def test_forms(values: dict[str, Any], expected: list[dict[str, str]], data: Data) -> None:
    assert read_turns(row(**values), data) == expected


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"messages": [*CHAT[:2], {"role": "assistant", "content": None, "tool_calls": [{"id": "SECRET"}]}]},
            "messages[2].content: a call of tools without text: must be text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "SECRET"}]}]},
            "messages[0].content[0]: a part of image_url: must be of type text",
        ),
        ({"messages": CHAT[:2]}, "messages: 2 messages, of system, user: must have one of role 'assistant'"),
        ({"messages": []}, "messages: 0 messages: must have one of role 'assistant'"),
        ({"messages": [{"from": "SECRET", "value": "x"}]}, "messages[0].from: another speaker: must be one of"),
        ({"messages": [{"text": "SECRET"}]}, 'messages[0]: an object with [\'text\']: must have "role" and "content"'),
        ({"messages": "SECRET"}, "messages: str: must be a list"),
        ({"messages": "[SECRET"}, "messages: text: must be a list of messages, or the JSON of one"),
        ({"messages": ["SECRET"]}, "messages[0]: str: must be an object"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content: int: must be text"),
        ({"prompt": "SECRET", "completion": 7}, "completion: int: must be a string"),
        ({"question": "SECRET"}, "a row without 'prompt'"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(values: dict[str, Any], words: str, data: Data) -> None:
    with pytest.raises(ConfigError) as caught:
        read_turns(row(**values), data)
    assert str(caught.value).startswith("x.jsonl:1")
    assert words in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_pairs_are_for_encoder_decoders_too(data: Data) -> None:
    assert read_pair(row(instruction="Add", input="1 2", output="3"), data) == ("Add\n\n1 2", "3")
    assert read_pair(row(prompt="Hi", completion="Hello."), data) == ("Hi", "Hello.")
