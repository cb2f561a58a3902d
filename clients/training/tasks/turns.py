"""Rows of language models become turns of a chat, in whatever of the common forms they are written.

Forms, the first that a row has counts; a field that is null is not there:

- ``messages``: a list of ``{"role", "content"}``, where content is text or a list of parts of type ``text``;
- ``prompt`` and ``completion``;
- ``conversations``: a list of ``{"from", "value"}``, as ShareGPT has it, from ``human``, ``gpt``, ``system``;
- ``instruction``, ``input`` (which may be empty or absent) and ``output``, as Alpaca has it;
- ``text``: all of it is to be learnt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from clients.data_sources import Row
from clients.data_sources.base import describe_columns
from clients.site import Data
from fedcompress.errors import ConfigError, one_of

ANSWERS = "assistant"  # role of the turns that the model has to say
CONVERSATIONS = "conversations"
INSTRUCTION = "instruction"
INPUT = "input"
OUTPUT = "output"
# roles by what ShareGPT's files and their kin call those who speak
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": ANSWERS,
    "chatgpt": ANSWERS,
    "bing": ANSWERS,
    "bard": ANSWERS,
    "model": ANSWERS,
    "assistant": ANSWERS,
    "system": "system",
}
ROLES = ("system", "developer", "user", ANSWERS, "tool", "function")  # that a message names
Turn = dict[str, str]


def columns_of_pairs(data: Data) -> tuple[tuple[str, ...], ...]:
    """Return the sets of columns that make a prompt and a completion, the first that a row has counts."""
    return ((data.prompt, data.completion), (INSTRUCTION, OUTPUT))


def columns_of_turns(data: Data) -> tuple[tuple[str, ...], ...]:
    """Return the sets of columns that make something to learn for a language model; the first that a row has counts."""
    own_pair, alpaca = columns_of_pairs(data)
    return ((data.messages,), own_pair, (CONVERSATIONS,), alpaca, (data.text,))


def is_plain_text(row: Row, data: Data) -> bool:
    """Return True if a row has none of the forms but text, all of which is to be learnt."""
    return _find_columns(row, data) == (data.text,)


def read_turns(row: Row, data: Data) -> list[Turn]:
    """Return a row as turns of a chat, each of ``role`` and ``content``.

    Raises:
        ConfigError: it has none of the forms, or a turn is malformed; says which and why, not what is in it.
    """
    columns = _find_columns(row, data)
    if columns in ((data.messages,), (CONVERSATIONS,)):
        return _read_chat(row, columns[0])
    if columns == (data.text,):
        return [{"role": ANSWERS, "content": row.text(data.text)}]
    prompt, completion = read_pair(row, data)
    return [{"role": "user", "content": prompt}, {"role": ANSWERS, "content": completion}]


def _find_columns(row: Row, data: Data) -> tuple[str, ...]:
    """Return the first set of columns that a row has, none of them null; the site's own pair if it has none."""
    sets = columns_of_turns(data)
    found = (names for names in sets if all(row.values.get(name) is not None for name in names))
    return next(found, columns_of_pairs(data)[0])


def read_pair(row: Row, data: Data) -> tuple[str, str]:
    """Return the prompt and the completion of a row.

    Raises:
        ConfigError: it has no such pair, or one that is no text.
    """
    own_pair, alpaca = columns_of_pairs(data)
    has_own = any(row.values.get(name) is not None for name in own_pair)
    if has_own or any(row.values.get(name) is None for name in alpaca):
        return row.text(data.prompt), row.text(data.completion)
    more = row.text(INPUT) if row.values.get(INPUT) is not None else ""
    instruction = row.text(INSTRUCTION)
    return (f"{instruction}\n\n{more}" if more.strip() else instruction), row.text(OUTPUT)


def name_roles(turns: Sequence[Mapping[str, str]]) -> str:
    """Return who speaks in the first turns, for a message, as ``, of user, assistant``; empty if there is no turn."""
    roles = [turn["role"] if turn["role"] in ROLES else "another" for turn in turns[:8]]
    return f", of {', '.join(roles)}{', ...' if len(turns) > 8 else ''}" if roles else ""


def _read_chat(row: Row, column: str) -> list[Turn]:
    """Return the turns of a column that holds a chat, as a list or as the JSON of one."""
    field, value = f"{row.where}.{column}", row.get(column)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ConfigError(field, "text", "must be a list of messages, or the JSON of one") from None
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ConfigError(field, type(value).__name__, 'must be a list of {"role", "content"} or of {"from", "value"}')
    turns = [_read_turn(turn, f"{field}[{number}]") for number, turn in enumerate(value)]
    if not any(turn["role"] == ANSWERS for turn in turns):
        raise ConfigError(field, f"{len(turns)} messages{name_roles(turns)}", f"must have one of role {ANSWERS!r}")
    return turns


def _read_turn(turn: Any, field: str) -> Turn:
    """Return one turn as role and text."""
    if not isinstance(turn, Mapping):
        raise ConfigError(field, type(turn).__name__, 'must be an object with "role" and "content"')
    if isinstance(turn.get("role"), str):
        return {"role": turn["role"], "content": _read_content(turn, "content", field)}
    speaker = turn.get("from")
    if not isinstance(speaker, str):
        keys = describe_columns(key for key in turn if turn[key] is not None)
        raise ConfigError(field, f"an object with {keys}", 'must have "role" and "content", or "from" and "value"')
    if speaker.lower() not in SPEAKERS:
        raise ConfigError(f"{field}.from", "another speaker", one_of(sorted(SPEAKERS)))
    return {"role": SPEAKERS[speaker.lower()], "content": _read_content(turn, "value", field)}


def _read_content(turn: Mapping[str, Any], key: str, field: str) -> str:
    """Return the text of a turn, whose parts are joined."""
    content = turn.get(key)
    if isinstance(content, str):
        return content
    if content is None:
        what = "a call of tools without text" if turn.get("tool_calls") else "null"
        raise ConfigError(f"{field}.{key}", what, "must be text: leave such turns out, or write them as text")
    if not isinstance(content, Sequence):
        raise ConfigError(
            f"{field}.{key}", type(content).__name__, 'must be text, or a list of {"type": "text", "text"}'
        )
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str) or kind not in ("text", "input_text", "output_text", "str", None):
            shown = kind if isinstance(kind, str) and kind.isidentifier() else "another kind"
            raise ConfigError(
                f"{field}.{key}[{number}]", f"a part of {shown}", "must be of type text: others are not trained"
            )
        texts.append(text)
    return "".join(texts)
