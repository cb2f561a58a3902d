"""Language models: completions of prompts, and turns of chats."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from clients.data_sources import Row
from clients.site import Data
from clients.training.tasks.base import IGNORED, Example, Sums
from clients.training.tasks.chat import ANSWERS, tokenize_chat
from clients.training.tasks.packing import compute_packed_logits, keeps_examples_apart, position_ids
from clients.training.tasks.padding import pad_rows
from fedcompress.errors import ConfigError


def read_turns(row: Row, data: Data) -> list[dict[str, str]]:
    """A row as turns of a chat: its messages, or its prompt and completion.

    Raises:
        ConfigError: it has neither, or a message is malformed.
    """
    if data.messages not in row.values:
        prompt, completion = row.text(data.prompt), row.text(data.completion)
        return [{"role": "user", "content": prompt}, {"role": ANSWERS, "content": completion}]
    field, turns = f"{row.where}.{data.messages}", row.get(data.messages)
    well = isinstance(turns, list) and all(
        isinstance(t, Mapping) and isinstance(t.get("role"), str) and isinstance(t.get("content"), str) for t in turns
    )
    if not well or not any(t["role"] == ANSWERS for t in turns):
        rule = f'must be a list of {{"role", "content"}}, one of them of role {ANSWERS!r}'
        raise ConfigError(field, type(turns).__name__, rule)
    return [{"role": t["role"], "content": t["content"]} for t in turns]


class CausalTask:
    """Next tokens of the answers; prompts, and turns of others, have no loss."""

    def __init__(self, data: Data, tokenizer: Any, max_length: int) -> None:
        self._data, self._tokenizer, self._max_length = data, tokenizer, max_length
        self.columns = ((data.messages,), (data.prompt, data.completion))
        self.packs = max_length if data.packing else None
        self._apart = False  # whether the model was seen to keep packed examples apart
        self._narrow: bool | None = None  # whether it computes logits only where they are asked for; None: not known

    def example(self, row: Row) -> Example:
        """Tokens of the conversation by the tokenizer's chat template, or plain where it has none.

        What is longer than ``max_length`` loses its beginning, up to the token before the first answer, and then
        its end.
        """
        turns = read_turns(row, self._data)
        chat = bool(self._tokenizer.chat_template)
        tokens, labels = tokenize_chat(self._tokenizer, turns, row.where) if chat else self._plain(turns)
        over = len(tokens) - self._max_length
        if over > 0:
            first = next((i for i, label in enumerate(labels) if label != IGNORED), len(labels))
            start = min(over, max(0, first - 1))
            tokens, labels = tokens[start:][: self._max_length], labels[start:][: self._max_length]
        # position 0 predicts nothing: its label is not the next of anything
        count = sum(label != IGNORED for label in labels[1:])
        if not count:
            raise ConfigError(row.where, f"{len(tokens)} tokens", "must have an answer of at least one token")
        return Example(row.where, tokens, labels, count)

    def _plain(self, turns: list[dict[str, str]]) -> tuple[list[int], list[int]]:
        tokens: list[int] = []
        labels: list[int] = []
        for turn in turns:
            ids = self._tokenizer(turn["content"], add_special_tokens=not tokens)["input_ids"]
            answers = turn["role"] == ANSWERS
            if answers and self._tokenizer.eos_token_id is not None and ids[-1:] != [self._tokenizer.eos_token_id]:
                ids = [*ids, self._tokenizer.eos_token_id]
            tokens += ids
            labels += ids if answers else [IGNORED] * len(ids)
        return tokens, labels

    def batch(self, examples: Sequence[Example]) -> dict[str, Any]:
        """``input_ids``, ``attention_mask`` and ``labels`` of (n, length); packed, ``position_ids`` for a mask."""
        ids, mask = pad_rows([e.tokens for e in examples], self._tokenizer.pad_token_id)
        labels, _ = pad_rows([e.labels for e in examples], IGNORED)
        if any(e.starts for e in examples):
            return {"input_ids": ids, "position_ids": position_ids(examples, ids.shape[1]), "labels": labels}
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def measure(self, module: Any, batch: dict[str, Any]) -> Sums:
        """Cross entropy of the next tokens of the answers.

        Raises:
            ConfigError: the site packs, and the model lets attention cross from one example to the next.
        """
        self._check_apart(module)
        labels = batch["labels"][:, 1:]
        if "position_ids" in batch:
            logits = compute_packed_logits(module, batch["input_ids"], batch["position_ids"])
        else:
            inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            if self._narrow is None:
                self._narrow = _takes_places(module)
            if self._narrow:  # logits of prompts are often the largest tensor, and have no loss
                places = (labels != IGNORED).any(0).nonzero()[:, 0]
                return _sums(module(**inputs, logits_to_keep=places).logits, labels[:, places])
            logits = module(**inputs).logits
        logits = logits[:, -batch["labels"].shape[1] :][:, :-1]  # a prompt that is trained stands before them
        return _sums(logits, labels)

    def _check_apart(self, module: Any) -> None:
        """Once, on all ranks together: not all models can, and those that cannot do not say so."""
        if self.packs is not None and not self._apart and not keeps_examples_apart(module):
            rule = "must be false with this model or adapter: what is packed before an example changes its loss"
            raise ConfigError("data.packing", "true", rule)
        self._apart = True


class Seq2SeqTask:
    """The completion from the encoded prompt."""

    def __init__(self, data: Data, tokenizer: Any, max_length: int) -> None:
        self._data, self._tokenizer, self._max_length = data, tokenizer, max_length
        self.columns = ((data.prompt, data.completion),)
        self.packs = None

    def example(self, row: Row) -> Example:
        """Tokens of the prompt, labels of the completion."""
        prompt, completion = row.text(self._data.prompt), row.text(self._data.completion)
        tokens = self._tokenizer(prompt, truncation=True, max_length=self._max_length)["input_ids"]
        labels = self._tokenizer(text_target=completion, truncation=True, max_length=self._max_length)["input_ids"]
        if not labels:
            raise ConfigError(f"{row.where}.{self._data.completion}", "0 tokens", "must have at least one")
        return Example(row.where, tokens, labels, len(labels))

    def batch(self, examples: Sequence[Example]) -> dict[str, Any]:
        """``input_ids`` and ``attention_mask`` of (n, length), ``labels`` of (n, length of completions)."""
        ids, mask = pad_rows([e.tokens for e in examples], self._tokenizer.pad_token_id)
        labels, _ = pad_rows([e.labels for e in examples], IGNORED)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def measure(self, module: Any, batch: dict[str, Any]) -> Sums:
        """Cross entropy of the completions' tokens."""
        return _sums(module(**batch).logits, batch["labels"])


def _takes_places(module: Any) -> bool:
    """Whether a model can be asked for the logits of some positions; not where a trained prompt shifts them."""
    model = getattr(module, "module", module)  # of an engine
    config = getattr(model, "active_peft_config", None)
    if config is None or config.is_prompt_learning or not hasattr(model, "get_base_model"):
        return False
    return "logits_to_keep" in inspect.signature(model.get_base_model().forward).parameters


def _sums(logits: Any, labels: Any) -> Sums:
    import torch

    kept = labels != IGNORED
    flat, wanted = logits[kept].float(), labels[kept]
    loss = torch.nn.functional.cross_entropy(flat, wanted, reduction="sum")
    right = torch.ones_like(labels, dtype=torch.bool)
    right[kept] = flat.argmax(1) == wanted
    return Sums(right[kept].sum(), loss, int(kept.sum()), right.all(1).sum())
