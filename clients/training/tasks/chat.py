"""Turns of a chat as tokens, by the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clients.training.tasks.base import IGNORED
from fedcompress.errors import ConfigError

ANSWERS = "assistant"
Turns = Sequence[Mapping[str, str]]


def tokenize_chat(tokenizer: Any, turns: Turns, where: str) -> tuple[list[int], list[int]]:
    """Tokens up to the last answer, and labels: what the model has to say, with the marks that end its turns.

    An answer is what a conversation has beyond the prompt for it. That is only so where the template writes the
    beginning of a conversation as it writes it alone, which is checked.

    Args:
        tokenizer: has a chat template.
        turns: of ``role`` and ``content``.
        where: the row, for messages.

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
        begin, end = (_shared(tokens, _tokens(tokenizer, text)) for text in (asked, upto))
        labels[begin:end] = tokens[begin:end]
    return tokens, labels


def _written(tokenizer: Any, turns: Turns, where: str, *, prompt: bool) -> str:
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=prompt)
    except (TemplateError, ValueError, IndexError, TypeError) as error:  # the text may hold a row
        rule = f"must be what the tokenizer's chat template accepts: {type(error).__name__}"
        raise ConfigError(where, f"{len(turns)} messages", rule) from None
    return text


def _without_space_after_mark(upto: str, asked: str, content: str) -> str:
    """Without the line end that many templates write after the mark of a turn's end: no model has to say it."""
    said, end = upto[len(asked) :].rstrip(), content.strip()
    return upto.rstrip() if said and not said.endswith(end or "\0") else upto


def _tokens(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning: a token that spans the end of a text belongs to what follows."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
