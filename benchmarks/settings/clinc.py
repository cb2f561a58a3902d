"""Setting M: all-MiniLM-L6-v2, LoRA r=8 on query and value with a linear head, CLINC150 domains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.settings.base import Setting, data_folder
from fedcompress.adapters.classifier import add_adapter, build_classifier
from fedcompress.demo.data import model_folder

SITES, ALPHA, EVAL_ROWS, MAX_LENGTH, EVAL_BATCH = 4, 0.3, 1500, 32, 100
CONFIG = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["query", "value"],
    "modules_to_save": ["classifier"],
}


class Split:
    """Tokens and domains of one split."""

    def __init__(self, name: str) -> None:
        from transformers import AutoTokenizer

        folder = data_folder("clinc150")
        rows = json.loads((folder / "data_full.json").read_text())[name]
        domains = json.loads((folder / "domains.json").read_text())
        self.names = sorted(domains)
        domain_of = {intent: self.names.index(d) for d, intents in domains.items() for intent in intents}
        tokenizer = AutoTokenizer.from_pretrained(model_folder())
        self.tokens = tokenizer([text for text, _ in rows], truncation=True, max_length=MAX_LENGTH)["input_ids"]
        self.labels = np.array([domain_of[intent] for _, intent in rows])

    def logits(self, model: Any, picks: Sequence[int]) -> Any:
        """Of some rows, padded to the longest."""
        import torch

        tokens = [self.tokens[i] for i in picks]
        width = max(map(len, tokens))
        ids = torch.tensor([t + [0] * (width - len(t)) for t in tokens])
        mask = torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in tokens])
        return model(input_ids=ids, attention_mask=mask)


def _dirichlet(labels: np.ndarray[Any, Any], classes: int) -> list[list[int]]:
    """Rows of each site: every class is shared out by its own Dirichlet draw."""
    draw = np.random.default_rng(0)
    sites: list[list[int]] = [[] for _ in range(SITES)]
    for label in range(classes):
        rows = draw.permutation(np.flatnonzero(labels == label))
        ends = (np.cumsum(draw.dirichlet([ALPHA] * SITES))[:-1] * rows.size).astype(int)
        for site, part in enumerate(np.split(rows, ends)):
            sites[site] += part.tolist()
    return sites


def clinc(*, steps: int = 12, eval_rows: int = EVAL_ROWS) -> Setting:
    """Accuracy on ``eval_rows`` of the shuffled test set."""
    import torch

    train, test = Split("train"), Split("test")
    sites = _dirichlet(train.labels, len(train.names))
    order = np.random.default_rng(1).permutation(len(test.tokens))[:eval_rows]
    by_length = sorted(order.tolist(), key=lambda i: len(test.tokens[i]))
    model = add_adapter(build_classifier(model_folder(), len(train.names)), CONFIG)

    def loss(site: int, picks: Sequence[int]) -> Any:
        chosen = [sites[site][i] for i in picks]
        target = torch.from_numpy(train.labels[chosen])
        return torch.nn.functional.cross_entropy(train.logits(model, chosen), target)

    def evaluate() -> float:
        right = 0
        for at in range(0, len(by_length), EVAL_BATCH):
            part = by_length[at : at + EVAL_BATCH]
            right += int((test.logits(model, part).argmax(1).numpy() == test.labels[part]).sum())
        return right / len(by_length)

    return Setting(
        name="M",
        model=model,
        examples=[len(s) for s in sites],
        loss=loss,
        evaluate=evaluate,
        steps=steps,
        batch=16,
        lr=2e-3,
        higher_is_better=True,
    )
