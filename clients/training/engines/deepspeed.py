"""DeepSpeed is kept warm: one engine serves many rounds. No other module imports deepspeed.

``deepspeed.initialize`` is called directly: accelerate's DeepSpeed path does not shard data
on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from clients.site import Engine
from fedcompress.adapters.attach import AdaptedModel
from fedcompress.config.train_task import TrainTask
from fedcompress.errors import ConfigError
from fedcompress.optim import build_optimizer
from fedcompress.types import Array, Tensors

if TYPE_CHECKING:
    from torch import Tensor


class DeepSpeedEngine:
    """Trains with ZeRO stages 0 to 3, with offload; DeepSpeed casts nothing.

    On a CPU DeepSpeed compiles a shared-memory all-reduce at every start, which needs a
    compiler and half a minute; gloo does the same for the small messages of adapters.
    """

    def __init__(self, attached: AdaptedModel, site: Engine, task: TrainTask, *, micro: int, accumulation: int) -> None:
        """Build the optimizer and DeepSpeed's engine around it.

        Args:
            attached: the model with what is trained in it.
            site: the section ``[engine]``.
            task: a round; says optimizer, learning rate, seed and clipping.
            micro: examples that a rank handles at once.
            accumulation: micro-batches of an optimizer step.

        Raises:
            ConfigError: ``engine.offload``: this machine cannot do it.
        """
        import deepspeed
        import torch

        if not torch.cuda.is_available():
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_init_required=False, verbose=False)
        self.micro = micro
        self._accumulation = accumulation
        optimizer = build_optimizer(attached.model, task.optimizer, lr=task.lr, seed=task.seed)
        self.stage = site.zero_stage
        try:
            self.engine, self._zero_optimizer, _, _ = deepspeed.initialize(
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
        self._optimizer = optimizer
        self.parameters: Mapping[str, Tensor] = attached.parameters
        self._frozen = attached.frozen
        self._one_by_one = attached.one_by_one
        self._world = torch.distributed.get_world_size()

    @property
    def device(self) -> Any:
        """Return the device that batches go to."""
        return self.engine.device

    @property
    def module(self) -> Any:
        """Return the engine: calling it takes part in ZeRO's gathers."""
        return self.engine

    def _gathered(self, parameters: Iterable[Tensor], *, write: bool) -> AbstractContextManager[Any]:
        """Gather parameters that ZeRO 3 partitions during a block; with ``write``, rank 0's values are then partitioned
        again.
        """
        if self.stage < 3:
            return nullcontext()
        import deepspeed

        modifier = 0 if write else None
        gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
            list(parameters), modifier_rank=modifier
        )
        return gathered

    def begin(self, state: Mapping[str, Array], task: TrainTask) -> None:
        """Begin a round; the optimizer's master copies and ZeRO's partitions follow."""
        import torch

        for group in self._groups({**self._frozen, **self.parameters}):
            with self._gathered(group.values(), write=True), torch.no_grad():
                for name, parameter in group.items():
                    parameter.data.copy_(torch.from_numpy(state[name]))
        refresh = getattr(self._zero_optimizer, "refresh_fp32_params", None)
        if refresh is not None:
            refresh()
        self._optimizer.new_round(task.round, state=task.optimizer_state)
        self.set_lr(task.lr)
        self.engine.zero_grad()

    def mode(self, *, train: bool) -> None:
        """Turn dropout on or off."""
        self.engine.train(train)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def read(self) -> Tensors:
        """Return copies of the trainable tensors, whole."""
        return {name: value.float().cpu().numpy().copy() for name, value in self.stream()}

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the trainable tensors, which are whole until the next one is asked for."""
        for group in self._groups(self.parameters):
            with self._gathered(group.values(), write=False):
                for name, parameter in group.items():
                    yield name, parameter.detach()

    def _groups(self, parameters: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return what is gathered together: all of an adapter, or each weight of the base by itself."""
        if self._one_by_one:
            return [{name: parameter} for name, parameter in parameters.items()]
        return [dict(parameters)]

    def step(self, loss: Tensor, *, last: bool) -> None:
        """Run the backward pass; DeepSpeed counts the micro-batches, and steps with the last one.

        It divides gradients by ranks and accumulation steps, so the loss is multiplied by both.
        """
        self.engine.backward(loss * (self._world * self._accumulation))
        self.engine.step()


def _zero(site: Engine) -> dict[str, Any]:
    """Return DeepSpeed's section ``zero_optimization``."""
    zero: dict[str, Any] = {"stage": site.zero_stage}
    if site.offload != "none":
        target: dict[str, Any] = {"device": site.offload}
        if site.offload == "nvme":
            target["nvme_path"] = str(site.offload_path)
        zero["offload_optimizer"] = {**target, "pin_memory": False}
        if site.zero_stage == 3:
            zero["offload_param"] = {**target, "pin_memory": False}
    return zero
