"""Turns of a chat become tokens and labels by the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clients.training.tasks.base import IGNORED
from clients.training.tasks.turns import ANSWERS, name_roles
from fedcompress.errors import ConfigError

MOST_WORDS = 300  # characters of an error that are looked at
Turns = Sequence[Mapping[str, str]]


def tokenize_chat(tokenizer: Any, turns: Turns, where: str) -> tuple[list[int], list[int]]:
    """Tokenize a conversation up to its last answer, and label what the model has to say.

    An answer is what a conversation has beyond the prompt for it. That is only so where the template writes the
    beginning of a conversation as it writes it alone, which is checked.

    Args:
        tokenizer: has a chat template.
        turns: each of ``role`` and ``content``; one at least is the assistant's.
        where: the row, for messages.

    Returns:
        Tokens, and as many labels: the token itself within an answer and the marks that end its turn, else ``IGNORED``.

    Raises:
        ConfigError: the template refuses the turns, or writes an earlier turn otherwise when another follows.
    """
    answers = [number for number, turn in enumerate(turns) if turn["role"] == ANSWERS]
    whole = _written(tokenizer, turns[: answers[-1] + 1], where, prompt=False)
    tokens = _tokens(tokenizer, whole)
    labels = [IGNORED] * len(tokens)
    for number in answers:
        asked = _written(tokenizer, turns[:number], where, prompt=True)
        upto = _written(tokenizer, turns[: number + 1], where, prompt=False)
        if not (whole.startswith(upto) and upto.startswith(asked)):
            rule = (
                "must write a conversation's beginning in the same way whatever follows: which tokens are the answer "
                "cannot be told; use prompt and completion, one answer a row, or another template"
            )
            raise ConfigError("chat template", f"{where}: turn {number + 1}", rule)
        upto = _without_space_after_mark(upto, asked, turns[number]["content"])
        begin = _shared(tokens, _tokens(tokenizer, asked))
        end = _shared(tokens, _tokens(tokenizer, upto))
        labels[begin:end] = tokens[begin:end]
    return tokens, labels


def _written(tokenizer: Any, turns: Turns, where: str, *, prompt: bool) -> str:
    """Return the turns as the template writes them; with ``prompt`` followed by the beginning of an answer."""
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=prompt)
    except (TemplateError, ValueError, IndexError, TypeError) as error:  # the text may hold a row
        said = _own_words(str(error), str(tokenizer.chat_template)) or type(error).__name__
        rule = f"must be what the tokenizer's chat template accepts: {said}"
        raise ConfigError(where, f"{len(turns)} messages{name_roles(turns)}", rule) from None
    return text


def _own_words(message: str, template: str) -> str:
    """Return what a template's own text says in an error, without what it took from a row; empty if that is nothing."""
    for end in range(min(len(message), MOST_WORDS), 7, -1):
        if message[:end] in template:
            return message[:end].strip()
    return ""


def _without_space_after_mark(upto: str, asked: str, content: str) -> str:
    """Remove the line end that many templates write after the mark of a turn's end: no model has to say it.

    Args:
        upto: the conversation, up to the end of an answer.
        asked: its beginning, up to the start of that answer.
        content: the answer itself.
    """
    answer = upto[len(asked) :].rstrip()
    has_mark = bool(answer) and not answer.endswith(content.strip() or "\0")
    return upto.rstrip() if has_mark else upto


def _tokens(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common beginning: a token that spans the end of a text belongs to what follows."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
