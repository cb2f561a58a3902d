"""A site's examples: tokenized once, batched in a seeded order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from clients.site import Data
from clients.training.rows import rows_of
from clients.training.tasks import Example, Task
from fedcompress.errors import ConfigError


def load_examples(data: Data, part: str, task: Task) -> list[Example]:
    """All rows of a part, tokenized.

    Raises:
        ConfigError: a bad row, with file and line; or no rows.
    """
    examples = [task.example(row) for row in rows_of(data, part)]
    if not examples:
        source = data.heldout if part == "heldout" and data.heldout else data.train
        raise ConfigError(f"data.{part}: {source}", "0 rows", "must have at least one")
    return examples


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
