"""Chats through a real template: what the model has to say has labels, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clients.data_sources import Row
from clients.site import Data
from clients.training.tasks.base import IGNORED, Example
from clients.training.tasks.language import CausalTask
from fedcompress.adapters.base_model import load_tokenizer
from fedcompress.demo.data import smollm2_folder
from fedcompress.errors import ConfigError, MissingPackageError

# Earlier answers lose what they thought, as templates of reasoning models have it.
FORGETS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'].split('</think>')[-1] }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate after ' + m['content']) }}{% endif %}{{ m['content'] }}\n{% endfor %}"
)
NO_MARK = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def smollm2() -> Any:
    try:
        return load_tokenizer(smollm2_folder())
    except MissingPackageError as error:
        pytest.skip(str(error))


@pytest.fixture
def tokenizer(smollm2: Any) -> Any:
    template = smollm2.chat_template
    yield smollm2
    smollm2.chat_template = template


def example(tokenizer: Any, values: dict[str, Any], length: int = 512) -> Example:
    task = CausalTask(Data(train="any:function"), tokenizer, length)
    return task.example(Row("rows.jsonl:7", values))


def learned(tokenizer: Any, found: Example) -> list[str]:
    """Text of each run of positions with labels; a label is the token of its position."""
    runs: list[list[int]] = []
    before = IGNORED
    for token, label in zip(found.tokens, found.labels, strict=True):
        if label != IGNORED:
            assert label == token
            if before == IGNORED:
                runs.append([])
            runs[-1].append(token)
        before = label
    assert sum(map(len, runs)) - (found.labels[0] != IGNORED) == found.predictions
    return [tokenizer.decode(run) for run in runs]


def turns(*contents: str, system: str = "") -> dict[str, Any]:
    roles = ["system"] if system else []
    roles += [("user", "assistant")[i % 2] for i in range(len(contents))]
    spoken = [system, *contents] if system else contents
    return {"messages": [{"role": r, "content": c} for r, c in zip(roles, spoken, strict=True)]}


def test_a_completion(tokenizer: Any) -> None:
    found = example(tokenizer, {"prompt": "What is 2 + 2?", "completion": "It is 4."})
    assert learned(tokenizer, found) == ["It is 4.<|im_end|>"]
    text = tokenizer.decode(found.tokens)
    assert text.startswith("<|im_start|>system\n")
    assert text.rstrip().endswith("assistant\nIt is 4.<|im_end|>")
    same = example(tokenizer, turns("What is 2 + 2?", "It is 4."))
    assert (same.tokens, same.labels) == (found.tokens, found.labels)


@pytest.mark.parametrize("system", ["", "You are terse."])
def test_every_answer_of_several_turns_and_no_more(tokenizer: Any, system: str) -> None:
    chat = turns("Hi", "Hello! How are you?", "Fine.", "Good\n\nto hear", "Bye", "Bye!", "and?", system=system)
    found = example(tokenizer, chat)
    assert learned(tokenizer, found) == ["Hello! How are you?<|im_end|>", "Good\n\nto hear<|im_end|>", "Bye!<|im_end|>"]
    assert "and?" not in tokenizer.decode(found.tokens), "what follows the last answer is of no use"
    whole = tokenizer.apply_chat_template(chat["messages"][:-1], tokenize=True, return_dict=False)
    assert found.tokens == whole, "the tokens are those of the template"


def test_a_first_token_that_merges_with_the_prompt_is_learned(tokenizer: Any) -> None:
    """The template's line end and the answer's first are one token: it is the answer's."""
    found = example(tokenizer, turns("Hi", "\n\nHello"))
    assert learned(tokenizer, found) == ["\n\n\nHello<|im_end|>"]
    assert [tokenizer.decode(t) for t in found.tokens[-5:-2]] == ["\n\n", "\n", "Hello"], "else this tests nothing"


def test_other_roles_are_not_learned(tokenizer: Any) -> None:
    chat = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "<call>"},
        {"role": "tool", "content": "assistant says 20 C"},
        {"role": "assistant", "content": "20 C"},
    ]
    assert learned(tokenizer, example(tokenizer, {"messages": chat})) == ["<call><|im_end|>", "20 C<|im_end|>"]


@pytest.mark.parametrize("length", [4, 8, 20, 40])
def test_what_is_cut_is_the_prompt(tokenizer: Any, length: int) -> None:
    found = example(tokenizer, {"prompt": "word " * 300, "completion": "yes"}, length)
    assert len(found.tokens) == length
    assert learned(tokenizer, found) == ["yes<|im_end|>"]
    assert found.predictions == 2


def test_what_is_cut_of_an_answer_is_its_end(tokenizer: Any) -> None:
    found = example(tokenizer, {"prompt": "word " * 300, "completion": "yes " * 300}, 16)
    assert len(found.tokens) == 16
    assert found.predictions == 15, "one token of the prompt is left, to tell the first of the answer from"
    several = example(tokenizer, turns("word " * 50, "one", "word " * 50, "two"), 30)
    assert learned(tokenizer, several) == ["one<|im_end|>"]


def test_a_template_without_a_mark_keeps_its_line_end(tokenizer: Any) -> None:
    tokenizer.chat_template = NO_MARK
    assert learned(tokenizer, example(tokenizer, turns("Hi", "Hello.", "Bye", "Bye."))) == [" Hello.\n", " Bye.\n"]


def test_a_template_that_writes_earlier_turns_otherwise_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = FORGETS
    assert learned(tokenizer, example(tokenizer, turns("Hi", "<think>SECRET</think>Hello"))) == [
        "<think>SECRET</think>Hello<|im_end|>"
    ]
    with pytest.raises(ConfigError) as caught:
        example(tokenizer, turns("Hi", "<think>SECRET</think>Hello", "Bye", "Bye"))
    assert str(caught.value).startswith("chat template: rows.jsonl:7: turn 2: must write a conversation's beginning")
    assert "SECRET" not in str(caught.value)


def test_turns_that_a_template_refuses(tokenizer: Any) -> None:
    tokenizer.chat_template = STRICT
    chat = {"messages": [{"role": "user", "content": "SECRET"}] * 2 + [{"role": "assistant", "content": "x"}]}
    with pytest.raises(
        ConfigError, match=r"7: 3 messages, of user, user, assistant: must be what .* accepts: roles must alternate"
    ) as caught:
        example(tokenizer, chat)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_tokenizer_without_a_template(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    found = example(tokenizer, {"prompt": "2 + 2 =", "completion": " 4"})
    assert learned(tokenizer, found) == [" 4<|im_end|>"]


def test_the_model_is_where_it_is_said(tokenizer: Any) -> None:
    assert Path(tokenizer.name_or_path).is_dir()
    assert tokenizer.eos_token == "<|im_end|>"


def test_a_chat_of_one_answer_is_a_chat_and_plain_text_is_none(tokenizer: Any) -> None:
    """What asks for an answer is written first, and a template has nothing to write for nobody."""
    with pytest.raises(ConfigError, match=r"7: 0 messages: must be what the tokenizer's chat template accepts"):
        example(tokenizer, {"messages": [{"role": "assistant", "content": "Hello."}]})
    plain = example(tokenizer, {"text": "Hello."})
    assert tokenizer.decode(plain.tokens) == f"Hello.{tokenizer.eos_token}"
    assert plain.predictions == len(plain.tokens) - 1
