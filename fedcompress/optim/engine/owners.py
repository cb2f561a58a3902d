"""Each matrix has one owner, a rank that gets the whole gradient and gives every rank its part of the step.

Where ranks hold parts of a matrix, they send the parts of its gradient to the owner and receive the same parts of the
direction. That happens after whoever is in charge has reduced, unscaled and clipped the gradient. Where every rank
holds all of it (data parallel), only the direction travels. Matrices are worked on in waves of one for each owner, so
that all ranks compute at once and no rank holds more than one whole matrix.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedcompress.optim.engine.ranks import gather_objects

if TYPE_CHECKING:
    from torch import Tensor

LOG = logging.getLogger("fedcompress.optim")
Span = tuple[int, int]  # start and number of entries, in the flattened matrix


def assign_owners(shapes: Mapping[str, tuple[int, ...]], world: int) -> dict[str, int]:
    """Assign an owner to each matrix: the most expensive one first, to the rank with the least to do.

    This is the longest-processing-time rule of Graham 1969, with ``m n min(m, n)`` as the time: that of a
    decomposition.

    Args:
        shapes: shapes of the matrices by name.
        world: number of ranks.

    Returns:
        Rank of the owner by name.
    """
    loads = [(0, rank) for rank in range(world)]
    owners = {}
    for name in sorted(shapes, key=lambda n: (-math.prod(shapes[n]) * min(shapes[n]), n)):
        load, rank = heapq.heappop(loads)
        owners[name] = rank
        heapq.heappush(loads, (load + math.prod(shapes[name]) * min(shapes[name]), rank))
    return owners


def split_into_waves(names: Sequence[str], owners: Mapping[str, int]) -> Iterator[list[str]]:
    """Yield the names in groups that have each owner at most once."""
    queues: dict[int, list[str]] = {}
    for name in names:
        queues.setdefault(owners[name], []).append(name)
    for turn in range(max(map(len, queues.values()), default=0)):
        yield [queue[turn] for queue in queues.values() if turn < len(queue)]


@dataclass(frozen=True)
class Exchange:
    """An exchange moves matrices between the ranks of the default process group and their owners.

    Args:
        spans: by matrix, which entries of it each rank has.
        shapes: shape of each matrix.
        owners: rank of the owner of each matrix.
        rank: this rank.
        replicated: whether every rank has all entries of every matrix.
        device: device on which collectives work.
    """

    spans: Mapping[str, Sequence[Span]]
    shapes: Mapping[str, tuple[int, ...]]
    owners: Mapping[str, int]
    rank: int
    replicated: bool
    device: Any

    def to_owners(self, names: Sequence[str], pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Send the pieces of matrices to their owners; all ranks call it with the same names.

        Args:
            names: matrices of one wave.
            pieces: what this rank has of them, float32 and flat; none for a matrix without entries here.

        Returns:
            The whole matrices that this rank owns, in their shapes.
        """
        import torch

        if self.replicated:
            return {n: pieces[n].view(self.shapes[n]) for n in names if self.owners[n] == self.rank}
        whole = {}
        transfers = []
        for tag, name in enumerate(names):
            owner = self.owners[name]
            spans = self.spans[name]
            if owner == self.rank:
                whole[name] = torch.zeros(math.prod(self.shapes[name]), device=self.device)
                for rank, (start, numel) in enumerate(spans):
                    if rank != self.rank and numel:
                        transfers.append(("recv", whole[name][start : start + numel], rank, tag))
                start, numel = spans[self.rank]
                if numel:
                    whole[name][start : start + numel] = pieces[name]
            elif spans[self.rank][1]:
                transfers.append(("send", pieces[name].to(self.device).contiguous(), owner, tag))
        _transfer(transfers)
        return {n: t.view(self.shapes[n]) for n, t in whole.items()}

    def from_owners(self, names: Sequence[str], whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Receive the pieces of matrices from their owners; all ranks call it with the same names.

        Args:
            names: matrices of one wave.
            whole: the matrices that this rank owns.

        Returns:
            What this rank has of all of them, float32 and flat.
        """
        import torch

        pieces = {}
        transfers = []
        for tag, name in enumerate(names):
            owner = self.owners[name]
            spans = self.spans[name]
            start, numel = spans[self.rank]
            if owner == self.rank:
                flat = whole[name].reshape(-1).to(self.device).float().contiguous()
                for rank, (first, count) in enumerate(spans):
                    if rank != self.rank and count:
                        transfers.append(("send", flat[first : first + count], rank, tag))
                if numel:
                    pieces[name] = flat[start : start + numel]
            elif numel:
                pieces[name] = torch.empty(numel, device=self.device)
                transfers.append(("recv", pieces[name], owner, tag))
        _transfer(transfers)
        return pieces


def build_exchange(
    shapes: Mapping[str, tuple[int, ...]], spans: Mapping[str, Span], owners: Mapping[str, int], device: Any
) -> Exchange:
    """Build an exchange of some matrices, after asking each rank what it has of them; all ranks call it.

    Args:
        shapes: shapes of the matrices by name.
        spans: what this rank has of each matrix; none for a matrix without entries here.
        owners: rank of the owner of each matrix.
        device: device on which collectives work.

    Returns:
        The exchange, as this rank sees it.
    """
    import torch

    everyone = gather_objects(dict(spans))
    return Exchange(
        spans={n: [theirs.get(n, (0, 0)) for theirs in everyone] for n in shapes},
        shapes=shapes,
        owners=owners,
        rank=torch.distributed.get_rank(),
        replicated=all(theirs.get(n) == (0, math.prod(shapes[n])) for theirs in everyone for n in shapes),
        device=device,
    )


def warn_of_parts(exchanges: Iterable[Exchange]) -> None:
    """Warn where a rank's state lacks what other ranks step of matrices that all ranks hold.

    Libraries save the state of one rank there, since they take it for that of all.
    """
    for exchange in exchanges:
        mine = sum(owner == exchange.rank for owner in exchange.owners.values())
        if exchange.replicated and mine < len(exchange.owners):
            LOG.warning(
                "the state of rank %d has %d of %d matrices, under data parallelism: other ranks have the others; "
                "build_optimizer(replicate=True) or optimizer.whole_state_dict() has all in one",
                exchange.rank,
                mine,
                len(exchange.owners),
            )
            return


def _transfer(transfers: Sequence[tuple[str, Tensor, int, int]]) -> None:
    """Make all sends and receives at once; each has a direction, a tensor, the other rank, and a tag."""
    import torch

    if not transfers:
        return
    dist = torch.distributed
    operations = []
    for direction, tensor, peer, tag in transfers:
        operation = dist.isend if direction == "send" else dist.irecv
        operations.append(dist.P2POp(operation, tensor, peer, tag=tag))
    for request in dist.batch_isend_irecv(operations):
        request.wait()
