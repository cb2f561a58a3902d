"""A site may have a smaller LoRA rank than the run's: it trains some of the components, others in every round.

The published factors stay whole: what this site does not train takes part in its forward pass, and its update is 0
there, so that nothing is truncated, and rules that merge products stay exact. Unlike HetLoRA's padding (Cho et al.
2024, arXiv:2401.06432), components are drawn anew for each round, so that all of them are trained in time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from fedcompress.adapters.groups import FACTOR_A, FACTOR_B
from fedcompress.errors import ConfigError
from fedcompress.types import Array

if TYPE_CHECKING:
    from torch import Tensor


class LoraRankLimit:
    """Sets the gradients of LoRA components that are not chosen for a round to 0."""

    def __init__(self, parameters: Mapping[str, Tensor], most: int, site: str) -> None:
        """Hook the gradients of all factors.

        Args:
            parameters: what is trained, by saved name; A is (rank, in), B is (out, rank).
            most: components of a module that are trained in a round; all where its rank is smaller.
            site: name of the site, whose draw it is.

        Raises:
            ConfigError: nothing here has a rank.
        """
        self._most = most
        self._site = site
        self._ranks: dict[str, int] = {}  # by name of a factor
        self._masks: dict[str, Tensor] = {}  # of the round: (rank, 1) for A, (1, rank) for B
        for name, parameter in parameters.items():
            if FACTOR_A.search(name) or FACTOR_B.search(name):
                # under ZeRO 3 a parameter's own shape is that of its partition
                shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
                self._ranks[name] = shape[0] if FACTOR_A.search(name) else shape[1]
                parameter.register_hook(lambda grad, name=name: grad * self._masks[name].to(grad))
        if not self._ranks:
            raise ConfigError("adapter.rank", most, "is for adapters with LoRA factors")

    def begin(self, seed: int, round_: int) -> None:
        """Choose the components of a round, by the run's seed and the round's number, from 1."""
        import torch

        for name, rank in self._ranks.items():
            chosen = torch.from_numpy(self._chosen(name, rank, seed, round_))
            self._masks[name] = chosen[:, None] if FACTOR_A.search(name) else chosen[None, :]

    def _chosen(self, name: str, rank: int, seed: int, round_: int) -> Array:
        """Return 1 for components that are trained, else 0, as float32 of (rank,); the same for both factors of a
        module.

        A permutation of the components, drawn once for site and module, is gone through ``most`` at a time, round by
        round.
        """
        module = FACTOR_B.split(FACTOR_A.split(name)[0])[0]
        text = f"{seed}/{self._site}/{module}/rank"
        key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
        order = np.random.Generator(np.random.Philox(key)).permutation(rank)
        most = min(self._most, rank)
        picks = order[(np.arange(most) + (round_ - 1) * most) % rank]
        mask = np.zeros(rank, np.float32)
        mask[picks] = 1
        return mask
