"""DeepSpeed, kept warm: one engine for many rounds. The only importer of deepspeed.

``deepspeed.initialize`` is called directly: accelerate's DeepSpeed path does not shard data
on a CPU.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from clients.site import Engine
from fedcompress.adapters.attach import Attached
from fedcompress.config import TrainTask
from fedcompress.errors import ConfigError
from fedcompress.optim import build
from fedcompress.types import Tensors, to_arrays


def init_distributed(timeout: int) -> tuple[int, int]:
    """Join the process group; returns rank and world size.

    ``timeout``, in seconds, is for collectives only: an idle rank waits for its worker, not
    in a collective, so it may idle for ever.

    On a CPU DeepSpeed compiles a shared-memory all-reduce at every start, which needs a
    compiler and half a minute; gloo does the same for the small messages of adapters.
    """
    from datetime import timedelta

    import deepspeed
    import torch

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "gloo":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend, timeout=timedelta(seconds=timeout), verbose=False)
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def micro_batches(batch_size: int, ranks: int, most: int) -> tuple[int, int]:
    """Examples a rank handles at once, at most ``most``, and accumulation steps.

    Raises:
        ConfigError: the global batch does not divide by the ranks.
    """
    per_rank, rest = divmod(batch_size, ranks)
    if rest or not per_rank:
        raise ConfigError("task.batch_size", batch_size, f"must be a multiple of engine.ranks, {ranks}")
    micro = math.gcd(per_rank, most) if per_rank > most else per_rank
    return micro, per_rank // micro


class WarmEngine:
    """A DeepSpeed engine whose trainable state is set and read round by round.

    Weights keep the dtypes that they have: adapters are float32 on a base of any dtype, and DeepSpeed casts nothing.
    """

    def __init__(self, attached: Attached, site: Engine, task: TrainTask, *, micro: int, accumulation: int) -> None:
        import deepspeed

        self.micro, self.accumulation = micro, accumulation
        optimizer = build(attached.model, task.optimizer, lr=task.lr, seed=task.seed)
        self.stage = site.zero_stage
        self.engine, self._outer, _, _ = deepspeed.initialize(
            model=attached.model,
            optimizer=optimizer,
            config={
                "train_micro_batch_size_per_gpu": self.micro,
                "gradient_accumulation_steps": self.accumulation,
                "gradient_clipping": task.clip,
                "zero_optimization": {"stage": self.stage},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 1 << 30,
            },
        )
        self._inner = optimizer
        self.parameters = attached.parameters

    @property
    def device(self) -> Any:
        """Where batches go."""
        return self.engine.device

    @property
    def module(self) -> Any:
        """The model; calling it takes part in ZeRO's gathers."""
        return self.engine

    def _gathered(self, *, write: bool) -> AbstractContextManager[Any]:
        if self.stage < 3:
            return nullcontext()
        import deepspeed

        modifier = 0 if write else None
        gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
            list(self.parameters.values()), modifier_rank=modifier
        )
        return gathered

    def begin(self, state: Tensors, task: TrainTask) -> None:
        """Set the trainable tensors and the learning rate, and reset or keep optimizer state.

        All ranks call it. Master copies and ZeRO's partitions follow.
        """
        import torch

        with self._gathered(write=True), torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.data.copy_(torch.from_numpy(state[name]))
        refresh = getattr(self._outer, "refresh_fp32_params", None)
        if refresh is not None:
            refresh()
        self._inner.new_round(task.round, state=task.optimizer_state)
        self.set_lr(task.lr)
        self.engine.zero_grad()

    def set_lr(self, lr: float) -> None:
        """Of the next step."""
        for group in self._inner.param_groups:
            group["lr"] = lr

    def read(self) -> Tensors:
        """The trainable tensors, whole, float32. All ranks call it."""
        with self._gathered(write=False):
            return {name: value.copy() for name, value in to_arrays(self.parameters).items()}

    def step(self, loss: Any) -> None:
        """Backward and, at the accumulation boundary, one optimizer step.

        DeepSpeed divides gradients by accumulation steps and by ranks.
        """
        self.engine.backward(loss)
        self.engine.step()
