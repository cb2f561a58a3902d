"""Several examples are packed into one block of tokens, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from clients.training.tasks.base import IGNORED, Example

if TYPE_CHECKING:
    from torch import Tensor


class PackedExamples(Sequence[Example]):
    """Joins examples to blocks of at most ``length`` tokens; each example is in one block, whole.

    The blocks are made once and do not depend on a seed: the longest example first, into the block that it fills best.
    """

    def __init__(self, examples: Sequence[Example], length: int) -> None:
        """Choose the blocks; an example is joined to others only when its block is asked for.

        Args:
            examples: what to pack.
            length: most tokens of a block.
        """
        self._examples = examples
        self._blocks = fill_blocks(count_tokens(examples), length)

    @property
    def rows(self) -> int:
        """Return the number of examples in all blocks."""
        return len(self._examples)

    def __len__(self) -> int:
        return len(self._blocks)

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> list[Example]: ...
    def __getitem__(self, at: int | slice) -> Example | list[Example]:
        """Return a block as one example, or a list of them."""
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        return join_examples([self._examples[i] for i in self._blocks[at]])


def count_tokens(examples: Sequence[Example]) -> list[int]:
    """Return the number of tokens of each example; a store on disk knows them without reading tokens."""
    known = getattr(examples, "lengths", None)
    return [len(e.tokens) for e in examples] if known is None else known().tolist()


def fill_blocks(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Return the numbers of the examples of each block: best fit, the longest first.

    Args:
        lengths: tokens of each example.
        most: tokens that a block has room for; an example that is longer has a block to itself.
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist()
    blocks: list[list[int]] = []
    open_by_room: list[list[int]] = [[] for _ in range(most + 1)]  # numbers of blocks by the tokens they have room for
    rooms = 0  # bit r is set where a block has room for exactly r tokens
    for number in order:
        need = max(1, lengths[number])
        fitting = rooms >> need if need <= most else 0
        if fitting:
            room = need + (fitting & -fitting).bit_length() - 1  # of the lowest bit: the least room that suffices
            block = open_by_room[room].pop()
            if not open_by_room[room]:
                rooms &= ~(1 << room)
            blocks[block].append(number)
        else:
            room = max(most, need)
            block = len(blocks)
            blocks.append([number])
        if room > need:
            open_by_room[room - need].append(block)
            rooms |= 1 << (room - need)
    return blocks


def join_examples(examples: Sequence[Example]) -> Example:
    """Join examples to one, one after the other; the first token of each is no label of the last token before it."""
    if len(examples) == 1:
        return examples[0]
    tokens: list[int] = []
    labels: list[int] = []
    starts = []
    for example in examples:
        starts.append(len(tokens))
        tokens += example.tokens
        labels += [IGNORED, *example.labels[1:]]
    where = f"{examples[0].where} and {len(examples) - 1} more"
    return Example(where, tokens, labels, sum(e.predictions for e in examples), tuple(starts))


def position_ids(examples: Sequence[Example], length: int) -> Tensor:
    """Return the position ids of packed examples, int64 of (n, length): counted from 0 at every start, and at the
    padding.
    """
    import torch

    positions = torch.empty((len(examples), length), dtype=torch.int64)
    for row, example in enumerate(examples):
        edges = [*(example.starts or (0,)), len(example.tokens), length]
        for begin, end in pairwise(edges):
            positions[row, begin:end] = torch.arange(end - begin)
    return positions


def compute_packed_logits(module: Any, ids: Tensor, positions: Tensor) -> Tensor:
    """Return the logits of packed blocks, attention staying within each example.

    A model of transformers that gets positions and neither mask nor cache masks what is before a position 0: with
    sdpa and eager by a mask of length^2 for each block, with flash attention by lengths, for one block only, so
    that blocks are laid end to end.

    Args:
        module: the model, or an engine that wraps it.
        ids: token ids of (n, length), int64.
        positions: position ids of the same shape.

    Returns:
        Logits of (n, length, vocabulary); of more positions where a trained prompt stands before them.
    """
    config = getattr(getattr(module, "module", module), "config", None)  # an engine has a config of its own
    is_flash = "flash" in str(getattr(config, "_attn_implementation", ""))
    shape = ids.shape
    if is_flash:
        ids = ids.reshape(1, -1)
        positions = positions.reshape(1, -1)
    logits: Tensor = module(input_ids=ids, position_ids=positions, attention_mask=None, use_cache=False).logits
    return logits.reshape(*shape, -1) if is_flash and logits.shape[1] == ids.shape[1] else logits


def keeps_examples_apart(module: Any) -> bool:
    """Return whether what a model says of an example is the same whatever is packed before it.

    Two blocks differ in their first example only. What that changes in the second is compared with what it changes
    where they are one text, so that a model that looks little at what stands before is not taken for one that does
    not. All ranks call it, as it runs the model, in evaluation mode and without gradients.
    """
    import torch

    device = next(module.parameters()).device
    ids = torch.tensor([[0, 0, 0, 0, 0, 1, 0, 1], [1, 1, 1, 1, 0, 1, 0, 1]], device=device)
    positions = torch.arange(4, device=device).repeat(2, 2)
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            apart = compute_packed_logits(module, ids, positions)
            mixed = module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    finally:
        module.train(was_training)
    if apart.shape[1] != ids.shape[1]:  # a trained prompt stands before them
        return False
    change_apart, change_mixed = (float((x[0, -4:].float() - x[1, -4:].float()).abs().max()) for x in (apart, mixed))
    return change_apart <= 0.1 * change_mixed
