"""The contract of an engine, and what all of them need first."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from fedcompress.config.train_task import TrainTask
from fedcompress.errors import ConfigError
from fedcompress.types import Array, Tensors


class WarmEngine(Protocol):
    """A model whose trainable state is set and read round by round. All ranks call everything together.

    Weights keep the dtypes that they have: adapters are float32 on a base of any dtype.
    """

    micro: int  # examples a rank handles at once
    parameters: Mapping[str, Any]  # what is trained, by the names of the layout

    @property
    def device(self) -> Any:
        """Where batches go."""
        ...

    @property
    def module(self) -> Any:
        """What is called with a batch."""
        ...

    def begin(self, state: Mapping[str, Array], task: TrainTask) -> None:
        """Set what is trained, what is set but frozen, and the learning rate; reset or keep optimizer state."""
        ...

    def mode(self, *, train: bool) -> None:
        """Dropout on or off."""
        ...

    def set_lr(self, lr: float) -> None:
        """Of the next step."""
        ...

    def step(self, loss: Any, *, last: bool) -> None:
        """Backward and, for the last micro-batch of a step, one optimizer step.

        The gradient of the step is the sum over all ranks and micro-batches of the gradients of ``loss``.
        """
        ...

    def read(self) -> Tensors:
        """The trainable tensors, whole, float32."""
        ...

    def stream(self) -> Iterator[tuple[str, Any]]:
        """The trainable tensors, whole, one at a time; a tensor is to be used before the next is asked for."""
        ...


def init_distributed(timeout: int, store: Any = None) -> tuple[int, int]:
    """Join the process group; returns rank and world size.

    ``timeout``, in seconds, is for collectives only: an idle rank waits for its worker, not
    in a collective, so it may idle for ever. Without a ``store`` the group is found by the
    environment, as torchrun sets it.
    """
    from datetime import timedelta

    import torch

    local = {}
    backend = "gloo"
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        backend, local = "nccl", {"device_id": device}
    place: dict[str, Any] = {}
    if store is not None:
        place = {"store": store, "rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    torch.distributed.init_process_group(backend, timeout=timedelta(seconds=timeout), **place, **local)
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def micro_batches(batch_size: int, ranks: int, most: int) -> tuple[int, int]:
    """Examples a rank handles at once, at most ``most``, and accumulation steps.

    Raises:
        ConfigError: the global batch does not divide by the ranks.
    """
    per_rank, rest = divmod(batch_size, ranks)
    if rest or not per_rank:
        raise ConfigError("task.batch_size", batch_size, f"must be a multiple of engine.ranks, {ranks}")
    micro = max(d for d in range(1, per_rank + 1) if per_rank % d == 0 and d <= max(1, most))
    return micro, per_rank // micro
