"""The accelerate engine runs one process, data parallelism by accelerate, or FSDP2 by torch.

accelerate has no FSDP2 on a CPU, so ``fully_shard`` is called directly, as accelerate does on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from clients.site import Engine
from fedcompress.adapters.attach import AdaptedModel
from fedcompress.config.train_task import TrainTask
from fedcompress.optim import build_optimizer
from fedcompress.types import Array, Tensors

if TYPE_CHECKING:
    from torch import Tensor


class AccelerateEngine:
    """Trains with one process, DDP or FSDP2; the optimizer is this library's in each."""

    def __init__(self, attached: AdaptedModel, site: Engine, task: TrainTask, *, micro: int) -> None:
        """Wrap the model and build the optimizer.

        Args:
            attached: the model with what is trained in it.
            site: the section ``[engine]``.
            task: a round; says optimizer, learning rate, seed and clipping.
            micro: examples that a rank handles at once.
        """
        import torch
        from accelerate import Accelerator

        self.micro = micro
        self._clip = task.clip
        self._accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self._world = torch.distributed.get_world_size()
        self._is_sharded = site.sharding == "fsdp2"
        self._model = attached.model
        # wrapping may replace parameter objects: they are found again by their names in the model
        names = {id(p): name for name, p in attached.model.named_parameters()}
        trained_names = {saved: names[id(p)] for saved, p in attached.parameters.items()}
        frozen_names = {saved: names[id(p)] for saved, p in attached.frozen.items()}
        if self._is_sharded:
            self._model.to(self._accelerator.device)
            _shard(self._model)
            self.module = self._model
        elif self._world > 1:
            self.module = self._accelerator.prepare_model(self._model)
        else:
            self.module = self._model.to(self._accelerator.device)
        wrapped = dict(self._model.named_parameters())
        self.parameters: Mapping[str, Tensor] = {saved: wrapped[name] for saved, name in trained_names.items()}
        self._frozen = {saved: wrapped[name] for saved, name in frozen_names.items()}
        self._optimizer = build_optimizer(self._model, task.optimizer, lr=task.lr, seed=task.seed)

    @property
    def device(self) -> Any:
        """Return the device that batches go to."""
        return self._accelerator.device

    def begin(self, state: Mapping[str, Array], task: TrainTask) -> None:
        """Begin a round; under FSDP2 each rank sets its shards."""
        import torch

        with torch.no_grad():
            for name, parameter in {**self._frozen, **self.parameters}.items():
                whole = torch.from_numpy(state[name]).to(parameter.device, parameter.dtype)
                parameter.copy_(_like(parameter, whole))
        self._optimizer.new_round(task.round, state=task.optimizer_state)
        self.set_lr(task.lr)
        self._optimizer.zero_grad()

    def mode(self, *, train: bool) -> None:
        """Turn dropout on or off."""
        self.module.train(train)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def step(self, loss: Tensor, *, last: bool) -> None:
        """Run the backward pass and, for the last micro-batch, one optimizer step.

        DDP and FSDP average gradients over ranks, so the loss is multiplied by their number. Gradients are reduced with
        the
        last micro-batch only.
        """
        import torch

        is_ddp_waiting = not last and self._world > 1 and not self._is_sharded
        if self._is_sharded:
            self._model.set_requires_gradient_sync(last)
        with self.module.no_sync() if is_ddp_waiting else nullcontext():
            (loss * self._world).backward()
        if not last:
            return
        if self._clip:
            torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def read(self) -> Tensors:
        """Return copies of the trainable tensors, whole."""
        return {name: value.float().cpu().numpy().copy() for name, value in self.stream()}

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the trainable tensors; FSDP2 gathers one at a time."""
        for name, parameter in self.parameters.items():
            yield name, getattr(parameter.detach(), "full_tensor", parameter.detach)()


def _shard(model: Any) -> None:
    """Shard a model by FSDP2: each block of a stack of layers, then the rest."""
    import torch
    from torch.distributed.fsdp import fully_shard

    for stack in [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 1]:
        for block in stack:
            fully_shard(block)
    fully_shard(model)


def _like(parameter: Tensor, whole: Tensor) -> Tensor:
    """Return a whole tensor laid out as a parameter is: sharded as it is under FSDP2, else as it is."""
    if not hasattr(parameter, "device_mesh"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    sharded: Tensor = distribute_tensor(whole, parameter.device_mesh, parameter.placements)
    return sharded
