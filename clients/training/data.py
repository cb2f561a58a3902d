"""A site's rows: read once, tokenized once, batched in a seeded order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clients.site import Data
from fedcompress.errors import ConfigError


@dataclass(frozen=True)
class Rows:
    """Tokenized rows: lists of token ids, and class indices."""

    tokens: list[list[int]]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.labels)


def load_rows(path: Path, data: Data, labels: tuple[str, ...], tokenizer: Any, max_length: int) -> Rows:
    """Read a JSONL file.

    Errors travel to the coordinator, so they name file and line but never hold what is in it.

    Raises:
        ConfigError: a bad row, with file and line; or no rows.
    """
    index = {name: i for i, name in enumerate(labels)}
    texts, classes = [], []
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            where = f"{path.name}:{number}"
            try:
                row = json.loads(line.decode("utf-8"))
                text, label = row[data.text], row[data.label]
            except (ValueError, KeyError, TypeError) as error:
                rule = f"must be a JSON object in UTF-8 with keys {data.text!r} and {data.label!r}"
                raise ConfigError(where, f"{len(line)} bytes", f"{rule}: {type(error).__name__}") from None
            if not isinstance(text, str):
                raise ConfigError(f"{where}.{data.text}", type(text).__name__, "must be a string")
            if not isinstance(label, str) or label not in index:
                found = "another string" if isinstance(label, str) else type(label).__name__
                raise ConfigError(f"{where}.{data.label}", found, f"must be one of {labels}")
            texts.append(text)
            classes.append(index[label])
    if not texts:
        raise ConfigError(f"data: {path}", "0 rows", "must have at least one")
    tokens = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    return Rows(tokens, classes)


def collate(rows: Rows, picks: list[int], pad: int) -> tuple[Any, Any, Any]:
    """Token ids ``(n, length)``, attention mask ``(n, length)`` and classes ``(n,)``, int64."""
    import torch

    length = max(len(rows.tokens[i]) for i in picks)
    ids = torch.full((len(picks), length), pad, dtype=torch.int64)
    mask = torch.zeros((len(picks), length), dtype=torch.int64)
    for place, i in enumerate(picks):
        size = len(rows.tokens[i])
        ids[place, :size] = torch.tensor(rows.tokens[i])
        mask[place, :size] = 1
    return ids, mask, torch.tensor([rows.labels[i] for i in picks])


def picks_for_steps(count: int, batch: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Row numbers of each global batch: epochs of seeded permutations, cut into batches.

    The order does not depend on the number of ranks.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    pool: list[int] = []
    for _ in range(steps):
        while len(pool) < batch:
            pool += generator.permutation(count).tolist()
        yield pool[:batch]
        pool = pool[batch:]
