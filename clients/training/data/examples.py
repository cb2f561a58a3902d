"""A site's examples are tokenized once, kept in memory or in a store on disk, and picked in a seeded order."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from clients.site import Data
from clients.training.data.rows import find_source, read_rows
from clients.training.data.token_store import shared_store
from clients.training.tasks import Example, Task
from clients.training.tasks.packing import PackedExamples
from fedcompress.errors import ConfigError

OnProgress = Callable[..., None]
REPORT = 5.0  # seconds between reports of progress
MIB = 1 << 20  # bytes


@dataclass(frozen=True, kw_only=True)
class Place:
    """Says where tokens are kept on disk, and which of the ranks this one is, as only rank 0 writes them.

    Attributes:
        folder: holds a store for each part.
        recipe: returns text on which the tokens depend besides the rows: tokenizer, length, objective.
        rank: number of this process.
        world: number of ranks.
    """

    folder: Path
    recipe: Callable[[], str]
    rank: int = 0
    world: int = 1


def load_examples(
    data: Data, part: str, task: Task, place: Place | None = None, progress: OnProgress | None = None
) -> Sequence[Example]:
    """Return all rows of a part as examples; packed where the site says so, in the training part.

    They are on disk if there is a place and the site streams, and otherwise in memory.

    Args:
        data: the section ``[data]`` of site.toml.
        part: ``train`` or ``heldout``.
        task: tokenizes the rows.
        place: where tokens may be kept on disk; None: in memory.
        progress: is told the number of rows every ``REPORT`` seconds, if given.

    Returns:
        Examples by number; a store reads one from disk when it is asked for.

    Raises:
        ConfigError: a bad row, with file and line; missing columns; no rows; packing of what cannot be packed.
        MissingPackageError: a package that reads the source is absent.
    """
    examples: Sequence[Example]
    if data.packing and task.packs is None:
        raise ConfigError("data.packing", "true", "is for causal language models")
    find_source(data, part).check()
    if place is not None and is_streamed(data, part):
        examples = shared_store(
            place.folder / part,
            _digest(data, part, task, place),
            lambda: _tokenized(data, part, task, progress),
            rank=place.rank,
            world=place.world,
        )
    else:
        examples = list(_tokenized(data, part, task, progress))
    if not examples:
        rule = "must have at least one" + ("" if data.heldout else "; without data.heldout the source needs two")
        raise ConfigError(f"data.{part}: {find_source(data, part).text}", "0 rows", rule)
    if data.packing and part == "train" and task.packs is not None:
        return PackedExamples(examples, task.packs)
    return examples


def row_count(examples: Sequence[Example]) -> int:
    """Return the number of rows that examples were made of; a packed example holds several."""
    return examples.rows if isinstance(examples, PackedExamples) else len(examples)


def is_streamed(data: Data, part: str) -> bool:
    """Return whether a part's tokens are kept on disk: the site says so, or the source is large."""
    if data.streaming or not data.streaming_above:
        return data.streaming
    return find_source(data, part).size() > data.streaming_above * MIB


def _digest(data: Data, part: str, task: Task, place: Place) -> str:
    """Return a digest of what the tokens of a part are made from.

    It is empty where nobody can know whether the rows are the same as before; their store is then always written again.
    """
    stamp = find_source(data, part).stamp()
    if not stamp:
        return ""
    # options that decide where tokens are kept or how they are joined do not change them
    options = {k: v for k, v in asdict(data).items() if k not in ("streaming", "streaming_above", "packing")}
    text = json.dumps([stamp, options, type(task).__name__, place.recipe()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _tokenized(data: Data, part: str, task: Task, progress: OnProgress | None) -> Iterator[Example]:
    """Yield the rows of a part as examples, and report how many there were from time to time."""
    reported_at = time.monotonic()
    for number, row in enumerate(read_rows(data, part, task.columns), start=1):
        yield task.example(row)
        if progress is not None and time.monotonic() - reported_at > REPORT:
            reported_at = time.monotonic()
            progress(phase="load", text=f"{part}: {number:,} rows tokenized")


def picks_for_steps(count: int, batch: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Yield the row numbers of each batch: epochs of seeded permutations, laid end to end and cut into batches.

    The order does not depend on the number of ranks.

    Args:
        count: number of rows.
        batch: rows of a whole batch, over all ranks.
        steps: how many batches to yield.
        seed: of the Philox generator.

    Yields:
        ``batch`` row numbers, from 0.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    pool: list[int] = []
    for _ in range(steps):
        while len(pool) < batch:
            pool += generator.permutation(count).tolist()
        yield pool[:batch]
        pool = pool[batch:]
