"""Classification gives each text one of the run's classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clients.data_sources import Row
from clients.site import Data
from clients.training.tasks.base import BatchSums, Example
from clients.training.tasks.padding import pad_rows
from fedcompress.config.objective import Classification
from fedcompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

_WHOLE = re.compile(r"-?\d+\.0+")  # a whole number that is written as a fraction


class ClassificationTask:
    """Predicts one class for each text; a label is an index into the run's list of class names."""

    def __init__(self, objective: Classification, data: Data, tokenizer: Any, max_length: int) -> None:
        self._index = {name: i for i, name in enumerate(objective.labels)}
        self._data = data
        self._tokenizer = tokenizer
        self._max_length = max_length
        self.columns = ((data.text, data.label),)
        self.packs = None

    def example(self, row: Row) -> Example:
        """Tokenize the text, cut to ``max_length``, and look up its class."""
        text, label = row.text(self._data.text), row.get(self._data.label)
        name = next((name for name in _names_of(label) if name in self._index), None)
        if name is None:
            description = "another string" if isinstance(label, str) else _describe(label)
            raise ConfigError(f"{row.where}.{self._data.label}", description, f"must be one of {tuple(self._index)}")
        tokens = self._tokenizer(text, truncation=True, max_length=self._max_length)["input_ids"]
        return Example(row.where, tokens, [self._index[name]], 1)

    def batch(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return ``input_ids`` and ``attention_mask`` of (n, length), ``labels`` of (n,)."""
        import torch

        ids, mask = pad_rows([e.tokens for e in examples], self._tokenizer.pad_token_id)
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([e.labels[0] for e in examples])}

    def measure(self, module: Any, batch: dict[str, Tensor]) -> BatchSums:
        """Compute the cross entropy of the classes, from logits of (n, classes) in float32.

        The model returns the logits, or an output of transformers that has them.
        """
        import torch

        output = module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        logits = (output if torch.is_tensor(output) else output.logits).float()
        labels = batch["labels"]
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        correct = (logits.argmax(1) == labels).sum()
        return BatchSums(correct, loss, len(labels), correct)


def _names_of(label: Any) -> list[str]:
    """Return the names that a value of the label's column may stand for, the most exact one first.

    Numbers and truth values are what a CSV file has of them: 1 is ``1``, and so is 1.0, also as text, as pandas writes
    whole numbers of a column with gaps; True is ``True``, ``true`` or ``1``. Text is itself, or itself without blanks
    around it.
    """
    match label:
        case bool():
            return [str(label), str(label).lower(), str(int(label))]
        case int():
            return [str(label)]
        case float() if label.is_integer():
            return [str(label), str(int(label))]
        case float():
            return [str(label)]
        case str():
            plain = label.strip()
            return [label, plain, plain.rpartition(".")[0] if _WHOLE.fullmatch(plain) else plain]
        case _:
            return []


def _describe(label: Any) -> str:
    """Return what kind of value a label is; never what is in it."""
    kind = type(label).__name__
    return f"another {kind}" if isinstance(label, bool | int | float) else kind
