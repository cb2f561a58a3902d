"""Memory of a training rank, before anything is rented.

Weights, gradients and optimizer state are counted from the shapes of the model, by what
DeepSpeed's stages keep (Rajbhandari et al. 2020, arXiv:1910.02054, section 5, and the buffers of
its code); activations are an estimate (Korthikanti et al. 2022, arXiv:2205.05198, equation 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fedcompress.errors import ConfigError
from fedcompress.optim import build_optimizer
from fedcompress.optim.base import MATRIX
from fedcompress.optim.engine.owners import owners_of
from fedcompress.optim.table import parse_optimizer, state_by_name

DTYPES = {"bf16": 2, "fp16": 2, "fp32": 4}
CARDS = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 192)  # GiB
GIB = 1 << 30
HEADROOM = 0.92  # of a card that one can use: the driver, the allocator and NCCL have the rest


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is asked.

    Args:
        optimizer: as for ``build_optimizer``.
        zero: stage, 0 to 3.
        ranks: GPUs.
        dtype: of the weights.
        micro_batch: examples a rank handles at once.
        length: tokens of an example.
        checkpointing: activations of a layer are computed again in the backward pass.
        bucket: entries of DeepSpeed's reduce bucket.
    """

    optimizer: str
    zero: int = 2
    ranks: int = 1
    dtype: str = "bf16"
    micro_batch: int = 1
    length: int = 1024
    checkpointing: bool = False
    bucket: int = 500_000_000

    def __post_init__(self) -> None:
        parse_optimizer(self.optimizer)
        if self.zero not in (0, 1, 2, 3):
            raise ConfigError("zero", self.zero, "must be 0, 1, 2 or 3")
        if self.dtype not in DTYPES:
            raise ConfigError("dtype", self.dtype, f"must be one of {list(DTYPES)}")
        for name in ("ranks", "micro_batch", "length", "bucket"):
            if getattr(self, name) < 1:
                raise ConfigError(name.replace("_", "-"), getattr(self, name), "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes of the fullest rank."""

    parameters: int
    trainable: int
    weights: int
    masters: int
    gradients: int
    state: int
    buffers: int
    activations: int
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.masters + self.gradients + self.state + self.buffers + self.activations

    @property
    def fits(self) -> int:
        """The smallest usual card, in GiB, that has room; 0 if none has."""
        return next((card for card in CARDS if self.total <= HEADROOM * card * GIB), 0)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "total": self.total, "fits_gib": self.fits}


def plan(model: Any, setup: Setup) -> Plan:
    """Count a model, which may be on the meta device; only its trainable parameters have gradients and state.

    Raises:
        ConfigError: the optimizer cannot have these parameters.
    """
    size, ranks = DTYPES[setup.dtype], setup.ranks
    every = sum(math.prod(p.shape) for p in model.parameters())
    groups = build_optimizer(model, setup.optimizer, lr=1e-3).param_groups
    shapes = {n: tuple(s) for g in groups for n, s in zip(g["names"], g["shapes"], strict=True)}
    trainable = sum(map(math.prod, shapes.values()))
    each = -(-trainable // ranks)
    sharded = setup.zero >= 1
    masters = 4 * (each if sharded else trainable)
    if setup.dtype == "fp32" and setup.zero in (0, 3):
        masters = 0  # the weights are their own
    buffers, notes = _buffers(setup, groups, shapes, trainable, each)
    return Plan(
        parameters=every,
        trainable=trainable,
        weights=size * (-(-every // ranks) if setup.zero == 3 else every),
        masters=masters,
        gradients=size * (each if setup.zero >= 2 else trainable) + (masters if size == 2 else 0),  # in float32 too
        state=_state(groups, shapes, setup),
        buffers=buffers,
        activations=activations(getattr(model, "config", None), setup, size),
        notes=notes,
    )


def _state(groups: Sequence[dict[str, Any]], shapes: dict[str, tuple[int, ...]], setup: Setup) -> int:
    """Of the rank that has most: shards of elementwise rules, whole matrices of their owner."""
    every = state_by_name(groups)
    matrices = {n: every[n] for g in groups if parse_optimizer(g["rule"]).placement == MATRIX for n in g["names"]}
    spread = sum(every.values()) - sum(matrices.values())
    held = [0] * setup.ranks
    for name, owner in owners_of({n: shapes[n] for n in matrices}, setup.ranks).items():
        held[owner] += matrices[name]
    return max(held) + (-(-spread // setup.ranks) if setup.zero else spread)


def _buffers(
    setup: Setup, groups: Sequence[dict[str, Any]], shapes: dict[str, tuple[int, ...]], trainable: int, each: int
) -> tuple[int, list[str]]:
    """Bytes beside the tensors that stay: DeepSpeed's buckets, and one matrix in and out of its owner."""
    size, notes, found = DTYPES[setup.dtype], [], 0
    if setup.zero >= 2 and setup.ranks > 1:
        found += size * min(setup.bucket, trainable)
        if setup.bucket < trainable or setup.bucket == 500_000_000:
            notes.append("reduce_bucket_size sets the buffers; 5e7 instead of DeepSpeed's 5e8 costs little speed")
    matrices = [shapes[n] for g in groups if parse_optimizer(g["rule"]).placement == MATRIX for n in g["names"]]
    found += 3 * 4 * max(map(math.prod, matrices), default=0)  # gradient, direction, one temporary
    if not matrices:
        largest = max(map(math.prod, shapes.values()), default=0)
        found += 2 * 4 * min(largest, each if setup.zero else largest)
    return found, notes


def activations(config: Any, setup: Setup, size: int) -> int:
    """Estimate for a transformer with fused attention and without dropout; 0 if its config has no sizes.

    A token keeps 8 widths in a layer (inputs of norms and projections, Q, K, V) and 2 inner
    widths of its MLP, or 4 if that is gated; logits are kept in float32 with their gradient.
    """
    width = getattr(config, "hidden_size", 0)
    layers, vocabulary = getattr(config, "num_hidden_layers", 0), getattr(config, "vocab_size", 0)
    inner = getattr(config, "intermediate_size", 0) or 4 * width
    tokens = setup.micro_batch * setup.length
    layer = tokens * (8 * width + (4 if getattr(config, "hidden_act", "") == "silu" else 2) * inner) * size
    stack = layers * tokens * width * size + layer if setup.checkpointing else layers * layer
    logits = tokens * vocabulary * (2 * 4 + size) if vocabulary else 0
    return int(stack + logits)
