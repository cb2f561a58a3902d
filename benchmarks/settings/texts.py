"""Text classification by all-MiniLM-L6-v2 with LoRA r=8 on query and value and a linear head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.settings.base import Setting
from fedcompress.adapters.attach import attach_adapter
from fedcompress.adapters.classifier import build_classifier
from fedcompress.demo.data import model_folder

MAX_LENGTH = 32
EVAL_BATCH = 100
CONFIG = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["query", "value"],
    "modules_to_save": ["classifier"],
}
Labels = np.ndarray[Any, Any]


class Texts:
    """Tokens and labels of one split."""

    def __init__(self, texts: Sequence[str], labels: Sequence[int], length: int = MAX_LENGTH) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model_folder())
        self.tokens = tokenizer(list(texts), truncation=True, max_length=length)["input_ids"]
        self.labels = np.array(labels)

    def logits(self, model: Any, picks: Sequence[int]) -> Any:
        """Compute the logits of some rows, padded to the longest."""
        import torch

        tokens = [self.tokens[i] for i in picks]
        width = max(map(len, tokens))
        ids = torch.tensor([t + [0] * (width - len(t)) for t in tokens])
        mask = torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in tokens])
        return model(input_ids=ids, attention_mask=mask)


def dirichlet(labels: Labels, classes: int, sites: int, alpha: float) -> list[list[int]]:
    """Rows of each site: every class is shared out by its own Dirichlet draw."""
    draw = np.random.default_rng(0)
    found: list[list[int]] = [[] for _ in range(sites)]
    for label in range(classes):
        rows = draw.permutation(np.flatnonzero(labels == label))
        ends = (np.cumsum(draw.dirichlet([alpha] * sites))[:-1] * rows.size).astype(int)
        for site, part in enumerate(np.split(rows, ends)):
            found[site] += part.tolist()
    return found


def classification(
    name: str,
    train: Texts,
    test: Texts,
    sites: Sequence[Sequence[int]],
    *,
    classes: int,
    steps: int,
    eval_rows: int = 0,
    held_out: Sequence[Sequence[int]] = (),
    on_accuracies: Callable[[list[float]], object] = lambda accuracies: None,
) -> Setting:
    """Build a setting whose metric is accuracy.

    Args:
        name: for tables.
        train: rows that sites train on.
        test: rows that are classified.
        sites: numbers of the rows of each site.
        classes: number of classes.
        steps: local steps a round.
        eval_rows: so many of the shuffled test rows count, where ``held_out`` is empty.
        held_out: numbers of test rows in parts, one of each site, that count.
        on_accuracies: is told the accuracy on each part.
    """
    import torch

    order = np.random.default_rng(1).permutation(len(test.tokens))[:eval_rows]
    parts = [sorted(p, key=lambda i: len(test.tokens[i])) for p in held_out or [order.tolist()]]
    attached = attach_adapter(build_classifier(model_folder(), classes, {"dtype": torch.float32}), CONFIG)
    model = attached.model

    def loss(site: int, picks: Sequence[int]) -> Any:
        chosen = [sites[site][i] for i in picks]
        target = torch.from_numpy(train.labels[chosen])
        return torch.nn.functional.cross_entropy(train.logits(model, chosen), target)

    def evaluate() -> float:
        right = [0] * len(parts)
        for number, rows in enumerate(parts):
            for at in range(0, len(rows), EVAL_BATCH):
                some = rows[at : at + EVAL_BATCH]
                right[number] += int((test.logits(model, some).argmax(1).numpy() == test.labels[some]).sum())
        on_accuracies([r / len(rows) for r, rows in zip(right, parts, strict=True)])
        return sum(right) / sum(map(len, parts))

    return Setting(
        name=name,
        model=attached,
        examples=[len(s) for s in sites],
        loss=loss,
        evaluate=evaluate,
        steps=steps,
        batch=16,
        lr=2e-3,
        higher_is_better=True,
    )
