"""The contract of an engine, and what all engines need first: a process group, and sizes of micro-batches.

An engine holds the model of a rank and keeps it warm. In a round the trainer calls, on all ranks together:

1. ``begin`` with the state to start from;
2. ``mode(train=False)`` and ``module(batch)`` to evaluate;
3. ``mode(train=True)``, and for each optimizer step ``set_lr``, then ``step`` with the loss of each micro-batch;
4. ``read``, or ``stream`` where one tensor at a time is to be in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from fedcompress.config.train_task import TrainTask
from fedcompress.errors import ConfigError
from fedcompress.types import Array, Tensors

if TYPE_CHECKING:
    from torch import Tensor


class WarmEngine(Protocol):
    """Trains a model whose trainable state is set and read round by round. All ranks call everything together.

    Weights keep the dtypes that they have: adapters are float32 on a base of any dtype.

    Attributes:
        micro: examples that a rank handles at once.
        parameters: what is trained, by the names of the layout.
    """

    micro: int
    parameters: Mapping[str, Tensor]

    @property
    def device(self) -> Any:
        """Return the device that batches go to."""
        ...

    @property
    def module(self) -> Any:
        """Return what is called with a batch: the model, or what wraps it."""
        ...

    def begin(self, state: Mapping[str, Array], task: TrainTask) -> None:
        """Begin a round: set what is trained, what is set but frozen, and the learning rate.

        Args:
            state: whole tensors, float32, by the names of the layout and of the frozen parameters.
            task: the round; says the learning rate, and whether optimizer state is kept or reset.
        """
        ...

    def mode(self, *, train: bool) -> None:
        """Turn dropout on for training, or off for evaluation."""
        ...

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        ...

    def step(self, loss: Tensor, *, last: bool) -> None:
        """Run the backward pass and, for the last micro-batch of a step, one optimizer step.

        The gradient of the step is the sum over all ranks and micro-batches of the gradients of ``loss``.

        Args:
            loss: a scalar, of this rank's micro-batch: its share of the loss of the whole batch.
            last: whether this micro-batch is the last one of the step.
        """
        ...

    def read(self) -> Tensors:
        """Return copies of the trainable tensors, whole, float32, on all ranks."""
        ...

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and trainable tensors, whole, one at a time; each is to be used before the next is asked for."""
        ...


def init_distributed(timeout: int, store: Any = None) -> tuple[int, int]:
    """Join the process group: NCCL where there are GPUs, else gloo.

    Args:
        timeout: seconds, for collectives only: an idle rank waits for its worker, not in a collective, so it may idle
            for ever.
        store: a ``TCPStore`` of the group; without one the group is found by the environment, as torchrun sets it.

    Returns:
        Rank and world size.
    """
    from datetime import timedelta

    import torch

    backend = "gloo"
    options: dict[str, Any] = {}
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        backend = "nccl"
        options["device_id"] = device
    if store is not None:
        options |= {"store": store, "rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    torch.distributed.init_process_group(backend, timeout=timedelta(seconds=timeout), **options)
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def micro_batches(batch_size: int, ranks: int, most: int) -> tuple[int, int]:
    """Split a batch over ranks and accumulation steps.

    Args:
        batch_size: examples of a whole batch, over all ranks.
        ranks: how many there are on all nodes.
        most: examples that a rank handles at once, at most; what is below 1 counts as 1.

    Returns:
        Examples that a rank handles at once, and accumulation steps; both are the same in each step.

    Raises:
        ConfigError: the batch does not divide by the ranks.
    """
    per_rank, rest = divmod(batch_size, ranks)
    if rest or not per_rank:
        raise ConfigError("task.batch_size", batch_size, f"must be a multiple of engine.ranks, {ranks}")
    micro = max(d for d in range(1, per_rank + 1) if per_rank % d == 0 and d <= max(1, most))
    return micro, per_rank // micro
