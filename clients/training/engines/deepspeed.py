"""DeepSpeed, kept warm: one engine for many rounds. The only importer of deepspeed.

``deepspeed.initialize`` is called directly: accelerate's DeepSpeed path does not shard data
on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from clients.site import Engine
from fedcompress.adapters.attach import AdaptedModel
from fedcompress.config.train_task import TrainTask
from fedcompress.errors import ConfigError
from fedcompress.optim import build_optimizer
from fedcompress.types import Array, Tensors


class DeepSpeedEngine:
    """ZeRO 0 to 3, with offload; DeepSpeed casts nothing.

    On a CPU DeepSpeed compiles a shared-memory all-reduce at every start, which needs a
    compiler and half a minute; gloo does the same for the small messages of adapters.
    """

    def __init__(self, attached: AdaptedModel, site: Engine, task: TrainTask, *, micro: int, accumulation: int) -> None:
        import deepspeed
        import torch

        if not torch.cuda.is_available():
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_init_required=False, verbose=False)
        self.micro, self._accumulation = micro, accumulation
        optimizer = build_optimizer(attached.model, task.optimizer, lr=task.lr, seed=task.seed)
        self.stage = site.zero_stage
        try:
            self.engine, self._outer, _, _ = deepspeed.initialize(
                model=attached.model,
                optimizer=optimizer,
                config={
                    "train_micro_batch_size_per_gpu": self.micro,
                    "gradient_accumulation_steps": accumulation,
                    "gradient_clipping": task.clip,
                    "zero_optimization": _zero(site),
                    "zero_allow_untested_optimizer": True,
                    "zero_force_ds_cpu_optimizer": False,
                    "steps_per_print": 1 << 30,
                },
            )
        except (ImportError, RuntimeError, AssertionError) as error:
            if site.offload == "none":
                raise
            rule = f"cannot be done on this machine: {str(error).splitlines()[0]}"
            raise ConfigError("engine.offload", site.offload, rule) from error
        self._inner = optimizer
        self.parameters: Mapping[str, Any] = attached.parameters
        self._frozen, self._one_by_one = attached.frozen, attached.one_by_one
        self._world = torch.distributed.get_world_size()

    @property
    def device(self) -> Any:
        """Where batches go."""
        return self.engine.device

    @property
    def module(self) -> Any:
        """The engine: calling it takes part in ZeRO's gathers."""
        return self.engine

    def _gathered(self, parameters: Iterable[Any], *, write: bool) -> AbstractContextManager[Any]:
        if self.stage < 3:
            return nullcontext()
        import deepspeed

        modifier = 0 if write else None
        gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
            list(parameters), modifier_rank=modifier
        )
        return gathered

    def begin(self, state: Mapping[str, Array], task: TrainTask) -> None:
        """As the contract; master copies and ZeRO's partitions follow."""
        import torch

        for group in self._groups({**self._frozen, **self.parameters}):
            with self._gathered(group.values(), write=True), torch.no_grad():
                for name, parameter in group.items():
                    parameter.data.copy_(torch.from_numpy(state[name]))
        refresh = getattr(self._outer, "refresh_fp32_params", None)
        if refresh is not None:
            refresh()
        self._inner.new_round(task.round, state=task.optimizer_state)
        self.set_lr(task.lr)
        self.engine.zero_grad()

    def mode(self, *, train: bool) -> None:
        """Dropout on or off."""
        self.engine.train(train)

    def set_lr(self, lr: float) -> None:
        """Of the next step."""
        for group in self._inner.param_groups:
            group["lr"] = lr

    def read(self) -> Tensors:
        """As the contract."""
        return {name: value.float().cpu().numpy().copy() for name, value in self.stream()}

    def stream(self) -> Iterator[tuple[str, Any]]:
        """As the contract."""
        for group in self._groups(self.parameters):
            with self._gathered(group.values(), write=False):
                for name, parameter in group.items():
                    yield name, parameter.detach()

    def _groups(self, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What is gathered together: all of an adapter, or each weight by itself."""
        return [{n: p} for n, p in parameters.items()] if self._one_by_one else [dict(parameters)]

    def step(self, loss: Any, *, last: bool) -> None:
        """As the contract; DeepSpeed divides gradients by ranks and accumulation steps, and counts the latter."""
        self.engine.backward(loss * (self._world * self._accumulation))
        self.engine.step()


def _zero(site: Engine) -> dict[str, Any]:
    """DeepSpeed's section for ZeRO."""
    zero: dict[str, Any] = {"stage": site.zero_stage}
    if site.offload != "none":
        place: dict[str, Any] = {"device": site.offload}
        if site.offload == "nvme":
            place["nvme_path"] = str(site.offload_path)
        zero["offload_optimizer"] = {**place, "pin_memory": False}
        if site.zero_stage == 3:
            zero["offload_param"] = {**place, "pin_memory": False}
    return zero
