"""One process, data parallelism by accelerate, or FSDP2 by torch.

accelerate has no FSDP2 on a CPU, so ``fully_shard`` is called directly, as accelerate does on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

from clients.site import Engine
from fedcompress.adapters.attach import AdaptedModel
from fedcompress.config.train_task import TrainTask
from fedcompress.optim import build_optimizer
from fedcompress.types import Array, Tensors


class AccelerateEngine:
    """Single, DDP or FSDP2; the optimizer is ours in each."""

    def __init__(self, attached: AdaptedModel, site: Engine, task: TrainTask, *, micro: int) -> None:
        import torch
        from accelerate import Accelerator

        self.micro, self._clip = micro, task.clip
        self._accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self._world = torch.distributed.get_world_size()
        self._sharded = site.sharding == "fsdp2"
        self._model = attached.model
        names = {id(p): name for name, p in attached.model.named_parameters()}
        where = {saved: names[id(p)] for saved, p in attached.parameters.items()}
        placed = {name: names[id(p)] for name, p in attached.frozen.items()}
        if self._sharded:
            self._model.to(self._accelerator.device)
            _shard(self._model)
            self.module = self._model
        elif self._world > 1:
            self.module = self._accelerator.prepare_model(self._model)
        else:
            self.module = self._model.to(self._accelerator.device)
        here = dict(self._model.named_parameters())
        self.parameters: Mapping[str, Any] = {saved: here[name] for saved, name in where.items()}
        self._frozen = {name: here[place] for name, place in placed.items()}
        self._optimizer = build_optimizer(self._model, task.optimizer, lr=task.lr, seed=task.seed)

    @property
    def device(self) -> Any:
        """Where batches go."""
        return self._accelerator.device

    def begin(self, state: Mapping[str, Array], task: TrainTask) -> None:
        """As the contract."""
        import torch

        with torch.no_grad():
            for name, parameter in {**self._frozen, **self.parameters}.items():
                whole = torch.from_numpy(state[name]).to(parameter.device, parameter.dtype)
                parameter.copy_(_like(parameter, whole))
        self._optimizer.new_round(task.round, state=task.optimizer_state)
        self.set_lr(task.lr)
        self._optimizer.zero_grad()

    def mode(self, *, train: bool) -> None:
        """Dropout on or off."""
        self.module.train(train)

    def set_lr(self, lr: float) -> None:
        """Of the next step."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def step(self, loss: Any, *, last: bool) -> None:
        """As the contract; DDP and FSDP average gradients over ranks."""
        import torch

        waits = not last and self._world > 1 and not self._sharded
        if self._sharded:
            self._model.set_requires_gradient_sync(last)
        with self.module.no_sync() if waits else nullcontext():
            (loss * self._world).backward()
        if not last:
            return
        if self._clip:
            torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def read(self) -> Tensors:
        """As the contract."""
        return {name: value.float().cpu().numpy().copy() for name, value in self.stream()}

    def stream(self) -> Iterator[tuple[str, Any]]:
        """As the contract."""
        for name, parameter in self.parameters.items():
            yield name, getattr(parameter.detach(), "full_tensor", parameter.detach)()


def _shard(model: Any) -> None:
    """FSDP2: each block of a stack of layers, then the rest."""
    import torch
    from torch.distributed.fsdp import fully_shard

    for stack in [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 1]:
        for block in stack:
            fully_shard(block)
    fully_shard(model)


def _like(parameter: Any, whole: Any) -> Any:
    """A whole tensor as the parameter is laid out."""
    if not hasattr(parameter, "device_mesh"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, parameter.device_mesh, parameter.placements)
