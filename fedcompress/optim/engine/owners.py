"""One owner for each matrix: it gets the whole gradient, and gives each rank its part of the step.

Where ranks hold parts of a matrix, they send them to its owner and receive the same parts of
the direction, after the gradient was reduced, unscaled and clipped by whoever does that. Where
ranks hold all (data parallel), only the direction travels. Matrices are worked on in waves of
one for each owner, so that all ranks compute at once and no more than that is held.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Span = tuple[int, int]  # start, numel


def owners_of(shapes: Mapping[str, tuple[int, ...]], world: int) -> dict[str, int]:
    """An owner for each matrix: the dearest first, to the rank with the least to do.

    Graham 1969's longest-processing-time rule, with ``m n min(m, n)`` as the time, that of a
    decomposition.
    """
    load = [(0, rank) for rank in range(world)]
    found = {}
    for name in sorted(shapes, key=lambda n: (-math.prod(shapes[n]) * min(shapes[n]), n)):
        done, rank = heapq.heappop(load)
        found[name] = rank
        heapq.heappush(load, (done + math.prod(shapes[name]) * min(shapes[name]), rank))
    return found


def waves(names: Sequence[str], owners: Mapping[str, int]) -> Iterator[list[str]]:
    """Names in groups that have each owner at most once."""
    queues: dict[int, list[str]] = {}
    for name in names:
        queues.setdefault(owners[name], []).append(name)
    for turn in range(max(map(len, queues.values()), default=0)):
        yield [queue[turn] for queue in queues.values() if turn < len(queue)]


@dataclass(frozen=True)
class Exchange:
    """Moves matrices between the ranks of the default process group.

    Args:
        spans: of each matrix, what each rank has of it.
        shapes: of each matrix.
        owners: of each matrix.
        rank: this one's.
        replicated: all ranks have all.
        device: where collectives work.
    """

    spans: Mapping[str, Sequence[Span]]
    shapes: Mapping[str, tuple[int, ...]]
    owners: Mapping[str, int]
    rank: int
    replicated: bool
    device: Any

    def to_owners(self, names: Sequence[str], pieces: Mapping[str, Any]) -> dict[str, Any]:
        """Whole matrices of those in ``names`` that this rank owns; all ranks call it."""
        import torch

        if self.replicated:
            return {n: pieces[n].view(self.shapes[n]) for n in names if self.owners[n] == self.rank}
        whole, work = {}, []
        for tag, name in enumerate(names):
            owner, spans = self.owners[name], self.spans[name]
            if owner == self.rank:
                whole[name] = torch.zeros(math.prod(self.shapes[name]), device=self.device)
                for rank, (start, numel) in enumerate(spans):
                    if rank != self.rank and numel:
                        work.append(("recv", whole[name][start : start + numel], rank, tag))
                start, numel = spans[self.rank]
                if numel:
                    whole[name][start : start + numel] = pieces[name]
            elif spans[self.rank][1]:
                work.append(("send", pieces[name].to(self.device).contiguous(), owner, tag))
        _exchange(work)
        return {n: t.view(self.shapes[n]) for n, t in whole.items()}

    def from_owners(self, names: Sequence[str], whole: Mapping[str, Any]) -> dict[str, Any]:
        """The flat pieces here of matrices that their owners give; all ranks call it."""
        import torch

        pieces, work = {}, []
        for tag, name in enumerate(names):
            owner, spans = self.owners[name], self.spans[name]
            start, numel = spans[self.rank]
            if owner == self.rank:
                flat = whole[name].reshape(-1).to(self.device).float().contiguous()
                for rank, (first, count) in enumerate(spans):
                    if rank != self.rank and count:
                        work.append(("send", flat[first : first + count], rank, tag))
                if numel:
                    pieces[name] = flat[start : start + numel]
            elif numel:
                pieces[name] = torch.empty(numel, device=self.device)
                work.append(("recv", pieces[name], owner, tag))
        _exchange(work)
        return pieces


def _exchange(work: Sequence[tuple[str, Any, int, int]]) -> None:
    """All sends and receives at once."""
    import torch

    if not work:
        return
    dist = torch.distributed
    ops = [dist.P2POp(dist.isend if kind == "send" else dist.irecv, t, peer, tag=tag) for kind, t, peer, tag in work]
    for request in dist.batch_isend_irecv(ops):
        request.wait()
