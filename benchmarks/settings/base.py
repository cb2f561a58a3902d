"""What a task is, and the training that all of them share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedcompress.adapters.attach import AdaptedModel
from fedcompress.adapters.seeded_init import seeded_init
from fedcompress.errors import ConfigError
from fedcompress.types import Tensors

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
LoraLoss = Callable[[Any, Sequence[int]], Any]


def data_folder(name: str) -> Path:
    """Folder of a data set that lies beside the checkout.

    Raises:
        ConfigError: it is absent.
    """
    folder = DATA / name
    if not folder.is_dir():
        raise ConfigError("data", folder, f"must hold the data set {name}")
    return folder


class Setting:
    """A model with an adapter, the data of some sites, and local AdamW; all state goes in and comes out.

    Args:
        name: for tables.
        model: with an adapter; only what is trained changes.
        examples: number of training examples of each site.
        loss: scalar loss of ``(site, indices)``.
        evaluate: the metric of the model as it is; needs no gradients.
        steps: local steps a round.
        batch: examples a step.
        lr: AdamW's.
        higher_is_better: direction of the metric.
    """

    def __init__(
        self,
        *,
        name: str,
        model: AdaptedModel,
        examples: Sequence[int],
        loss: Callable[[int, Sequence[int]], Any],
        evaluate: Callable[[], float],
        steps: int,
        batch: int,
        lr: float,
        higher_is_better: bool,
    ) -> None:
        self.name = name
        self.examples = list(examples)
        self.higher_is_better = higher_is_better
        self._model = model.model
        self._loss = loss
        self._evaluate = evaluate
        self._steps = steps
        self._batch = batch
        self._lr = lr
        self._parameters = model.parameters
        self.layout = model.layout
        self._rule: tuple[str, str] | None = None
        self._kept: dict[int, dict[str, Any]] = {}  # state of a site's optimizer

    def use(self, optimizer: str, lr: float, state: str = "reset") -> None:
        """Train with one of our optimizers from now on, whose state a round resets or keeps."""
        from fedcompress.optim import build_optimizer

        self._built = build_optimizer(self._model, optimizer, lr=lr)
        self._rule = (optimizer, state)
        self._kept.clear()

    def initial(self, seed: int) -> Tensors:
        """The seeded start."""
        return seeded_init(self.layout, seed)

    def _load(self, state: Tensors) -> None:
        import torch

        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(torch.from_numpy(state[name]))

    def train(self, state: Tensors, site: int, round_: int, seed: int) -> Tensors:
        """The state after this site's local steps."""
        import torch

        self._load(state)
        self._model.train()
        text = f"{self.name}/{seed}/{round_}/{site}".encode()
        draw = np.random.default_rng(int.from_bytes(hashlib.sha256(text).digest()[:8], "little"))
        torch.manual_seed(int(draw.integers(1 << 31)))
        optimizer = self._begin(site, round_)
        for _ in range(self._steps):
            picks = draw.integers(self.examples[site], size=self._batch)
            optimizer.zero_grad()
            self._loss(site, picks.tolist()).backward()
            torch.nn.utils.clip_grad_norm_(self._parameters.values(), 1.0)
            optimizer.step()
        if self._rule:
            self._kept[site] = optimizer.state_dict()
        return {n: p.detach().float().numpy().copy() for n, p in self._parameters.items()}

    def _begin(self, site: int, round_: int) -> Any:
        """The optimizer of a site's round."""
        import torch

        if self._rule is None:
            return torch.optim.AdamW(self._parameters.values(), lr=self._lr, weight_decay=0.0)
        keep = site in self._kept and self._rule[1] == "keep"
        if keep:
            self._built.load_state_dict(self._kept[site])
        self._built.new_round(round_, state="keep" if keep else "reset")
        return self._built

    def evaluate(self, state: Tensors) -> float:
        """The metric of a state."""
        import torch

        self._load(state)
        self._model.eval()
        with torch.no_grad():
            return self._evaluate()
