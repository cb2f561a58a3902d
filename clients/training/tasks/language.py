"""Language models learn completions of prompts, and the assistant's turns of chats."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clients.data_sources import Row
from clients.site import Data
from clients.training.tasks.base import IGNORED, BatchSums, Example
from clients.training.tasks.chat import tokenize_chat
from clients.training.tasks.packing import compute_packed_logits, keeps_examples_apart, position_ids
from clients.training.tasks.padding import pad_rows
from clients.training.tasks.turns import (
    ANSWERS,
    columns_of_pairs,
    columns_of_turns,
    is_plain_text,
    read_pair,
    read_turns,
)
from fedcompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


class CausalTask:
    """Predicts the next tokens of the answers; prompts, and turns of others, have no loss."""

    def __init__(self, data: Data, tokenizer: Any, max_length: int) -> None:
        self._data = data
        self._tokenizer = tokenizer
        self._max_length = max_length
        self.columns = columns_of_turns(data)
        self.packs = max_length if data.packing else None
        self._is_apart = False  # whether the model was seen to keep packed examples apart
        self._is_narrow: bool | None = None  # whether it computes logits only where it is asked; None: not known

    def example(self, row: Row) -> Example:
        """Tokenize the conversation by the tokenizer's chat template, or plain where it has none.

        What is longer than ``max_length`` loses its beginning, up to the token before the first answer, and then
        its end.
        """
        turns = read_turns(row, self._data)
        if self._tokenizer.chat_template and not is_plain_text(row, self._data):
            tokens, labels = tokenize_chat(self._tokenizer, turns, row.where)
        else:
            tokens, labels = self._plain(turns)
        excess = len(tokens) - self._max_length
        if excess > 0:
            first = next((i for i, label in enumerate(labels) if label != IGNORED), len(labels))
            start = min(excess, max(0, first - 1))
            tokens, labels = tokens[start:][: self._max_length], labels[start:][: self._max_length]
        # position 0 predicts nothing: its label is not the next of anything
        count = sum(label != IGNORED for label in labels[1:])
        if not count:
            raise ConfigError(row.where, f"{len(tokens)} tokens", "must have an answer of at least one token")
        return Example(row.where, tokens, labels, count)

    def _plain(self, turns: list[dict[str, str]]) -> tuple[list[int], list[int]]:
        """Tokenize turns one after the other; the end-of-text token follows an answer that does not end with it."""
        tokens: list[int] = []
        labels: list[int] = []
        for turn in turns:
            ids = self._tokenizer(turn["content"], add_special_tokens=not tokens)["input_ids"]
            is_answer = turn["role"] == ANSWERS
            end = self._tokenizer.eos_token_id
            if is_answer and end is not None and ids[-1:] != [end]:
                ids = [*ids, end]
            tokens += ids
            labels += ids if is_answer else [IGNORED] * len(ids)
        return tokens, labels

    def batch(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask`` and ``labels`` of (n, length).

        Where examples are packed, ``position_ids`` take the place of the mask.
        """
        ids, mask = pad_rows([e.tokens for e in examples], self._tokenizer.pad_token_id)
        labels, _ = pad_rows([e.labels for e in examples], IGNORED)
        if any(e.starts for e in examples):
            return {"input_ids": ids, "position_ids": position_ids(examples, ids.shape[1]), "labels": labels}
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def measure(self, module: Any, batch: dict[str, Tensor]) -> BatchSums:
        """Compute the cross entropy of the next tokens of the answers, from logits of (n, length, vocabulary).

        Raises:
            ConfigError: the site packs, and the model lets attention cross from one example to the next.
        """
        self._check_apart(module)
        labels = batch["labels"][:, 1:]
        if "position_ids" in batch:
            logits = compute_packed_logits(module, batch["input_ids"], batch["position_ids"])
        else:
            inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            if self._is_narrow is None:
                self._is_narrow = _can_choose_positions(module)
            if self._is_narrow:  # logits of prompts are often the largest tensor, and have no loss
                chosen = (labels != IGNORED).any(0).nonzero()[:, 0]  # positions that have a loss in any example
                return _sums(module(**inputs, logits_to_keep=chosen).logits, labels[:, chosen])
            logits = module(**inputs).logits
        logits = logits[:, -batch["labels"].shape[1] :][:, :-1]  # a prompt that is trained stands before them
        return _sums(logits, labels)

    def _check_apart(self, module: Any) -> None:
        """Check once, on all ranks together, that the model keeps packed examples apart: those that cannot do not say
        so.
        """
        if self.packs is not None and not self._is_apart and not keeps_examples_apart(module):
            rule = "must be false with this model or adapter: what is packed before an example changes its loss"
            raise ConfigError("data.packing", "true", rule)
        self._is_apart = True


class Seq2SeqTask:
    """Trains an encoder-decoder to give the completion of a prompt."""

    def __init__(self, data: Data, tokenizer: Any, max_length: int) -> None:
        self._data = data
        self._tokenizer = tokenizer
        self._max_length = max_length
        self.columns = columns_of_pairs(data)
        self.packs = None

    def example(self, row: Row) -> Example:
        """Tokenize the prompt, and as labels the completion, each cut to ``max_length``."""
        prompt, completion = read_pair(row, self._data)
        tokens = self._tokenizer(prompt, truncation=True, max_length=self._max_length)["input_ids"]
        labels = self._tokenizer(text_target=completion, truncation=True, max_length=self._max_length)["input_ids"]
        if not labels:
            raise ConfigError(f"{row.where}.{self._data.completion}", "0 tokens", "must have at least one")
        return Example(row.where, tokens, labels, len(labels))

    def batch(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return ``input_ids`` and ``attention_mask`` of (n, length), ``labels`` of (n, length of completions)."""
        ids, mask = pad_rows([e.tokens for e in examples], self._tokenizer.pad_token_id)
        labels, _ = pad_rows([e.labels for e in examples], IGNORED)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def measure(self, module: Any, batch: dict[str, Tensor]) -> BatchSums:
        """Compute the cross entropy of the completions' tokens; the model shifts its decoder's inputs itself."""
        return _sums(module(**batch).logits, batch["labels"])


def _can_choose_positions(module: Any) -> bool:
    """Return whether a model can be asked for the logits of some positions; not where a trained prompt shifts them."""
    model = getattr(module, "module", module)  # of an engine
    config = getattr(model, "active_peft_config", None)
    if config is None or config.is_prompt_learning or not hasattr(model, "get_base_model"):
        return False
    return "logits_to_keep" in inspect.signature(model.get_base_model().forward).parameters


def _sums(logits: Tensor, labels: Tensor) -> BatchSums:
    """Return the sums over all positions whose label is not ``IGNORED``: logits of (n, length, vocabulary), labels of
    (n, length).
    """
    import torch

    mask = labels != IGNORED
    flat_logits = logits[mask].float()  # (predictions, vocabulary)
    targets = labels[mask]
    loss = torch.nn.functional.cross_entropy(flat_logits, targets, reduction="sum")
    is_right = torch.ones_like(labels, dtype=torch.bool)  # positions without a loss count as right
    is_right[mask] = flat_logits.argmax(1) == targets
    return BatchSums(is_right[mask].sum(), loss, int(mask.sum()), is_right.all(1).sum())
