"""The memory plan says how much memory a training rank will need, before any machine is rented.

Weights, gradients and optimizer state are counted from the shapes of the model, by what DeepSpeed's stages keep
(Rajbhandari et al. 2020, arXiv:1910.02054, section 5, and the buffers of its code). Activations are an estimate
(Korthikanti et al. 2022, arXiv:2205.05198, equation 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fedcompress.call_syntax import format_call
from fedcompress.errors import ConfigError, one_of
from fedcompress.optim import build_optimizer
from fedcompress.optim.base import MATRIX
from fedcompress.optim.engine.owners import assign_owners
from fedcompress.optim.table import parse_optimizer, state_by_name
from fedcompress.optim.units import list_units

DTYPES = {"bf16": 2, "fp16": 2, "fp32": 4}  # bytes of one entry
CARDS = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 192)  # memory of usual GPUs, in GiB
GIB = 1 << 30  # bytes
HEADROOM = 0.92  # usable share of a card; the driver, the allocator and NCCL have the rest
DEFAULT_BUCKET = 500_000_000  # DeepSpeed's own reduce_bucket_size, in entries


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A setup says how a model is to be trained.

    Args:
        optimizer: name or call, as for ``build_optimizer``.
        zero: DeepSpeed's ZeRO stage, 0 to 3.
        ranks: number of GPUs.
        dtype: dtype of the weights, one of ``DTYPES``.
        micro_batch: examples that a rank handles at once.
        length: tokens of an example.
        checkpointing: whether the activations of a layer are computed again in the backward pass.
        bucket: entries of DeepSpeed's reduce bucket.
    """

    optimizer: str
    zero: int = 2
    ranks: int = 1
    dtype: str = "bf16"
    micro_batch: int = 1
    length: int = 1024
    checkpointing: bool = False
    bucket: int = DEFAULT_BUCKET

    def __post_init__(self) -> None:
        parse_optimizer(self.optimizer)
        if self.zero not in (0, 1, 2, 3):
            raise ConfigError("zero", self.zero, "must be 0, 1, 2 or 3")
        if self.dtype not in DTYPES:
            raise ConfigError("dtype", self.dtype, one_of(DTYPES, self.dtype))
        for name in ("ranks", "micro_batch", "length", "bucket"):
            if getattr(self, name) < 1:
                raise ConfigError(name.replace("_", "-"), getattr(self, name), "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """A plan has the bytes of the rank that needs most.

    Args:
        parameters: number of entries of all parameters of the model.
        trainable: number of entries of those that are trained.
        weights: bytes of the weights.
        masters: bytes of the float32 copies of the trainable weights.
        gradients: bytes of the gradients, and of their float32 copies if the weights have 16 bits.
        state: bytes of the optimizer state.
        buffers: bytes of DeepSpeed's buckets and of the optimizer's temporaries.
        activations: estimated bytes of the activations.
        notes: advice for whoever reads the plan.
    """

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
        """Return the bytes of all parts together."""
        return self.weights + self.masters + self.gradients + self.state + self.buffers + self.activations

    @property
    def fits(self) -> int:
        """Return the size in GiB of the smallest usual card that has room, or 0 if none has."""
        return next((card for card in CARDS if self.total <= HEADROOM * card * GIB), 0)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as a dict for JSON, with ``total`` and ``fits_gib``."""
        return {**asdict(self), "total": self.total, "fits_gib": self.fits}


def plan(model: Any, setup: Setup) -> MemoryPlan:
    """Plan the memory of training a model, which may be on the meta device.

    Only trainable parameters have gradients and state.

    Raises:
        ConfigError: the optimizer cannot have these parameters.
    """
    size = DTYPES[setup.dtype]
    total = sum(math.prod(p.shape) for p in model.parameters())
    groups = build_optimizer(model, setup.optimizer, lr=1e-3).param_groups
    shapes = {n: tuple(s) for g in groups for n, s in zip(g["names"], g["shapes"], strict=True)}
    trainable = sum(map(math.prod, shapes.values()))
    share = -(-trainable // setup.ranks)  # trainable entries of one rank, where they are sharded
    masters = 4 * (share if setup.zero >= 1 else trainable)
    if setup.dtype == "fp32" and setup.zero in (0, 3):
        masters = 0  # the weights are their own
    gradients = size * (share if setup.zero >= 2 else trainable)
    if size == 2:
        gradients += masters  # gradients in float32, beside those in 16 bits
    buffers, notes = _count_buffers(setup, groups, trainable, share)
    notes += _note_share(setup.optimizer, groups, trainable)
    return MemoryPlan(
        parameters=total,
        trainable=trainable,
        weights=size * (-(-total // setup.ranks) if setup.zero == 3 else total),
        masters=masters,
        gradients=gradients,
        state=_count_state(groups, setup),
        buffers=buffers,
        activations=estimate_activations(getattr(model, "config", None), setup, size),
        notes=notes,
    )


def _note_share(optimizer: str, groups: Sequence[dict[str, Any]], trainable: int) -> list[str]:
    """Return a note if the rule that was asked for gets less than half of what is trained, and the rest's the other."""
    call = format_call(parse_optimizer(optimizer))
    own = sum(math.prod(unit.shape) for g in groups if g["rule"] == call for unit in list_units(g))
    if own >= trainable / 2:
        return []
    rest = ", ".join(sorted({g["rule"] for g in groups} - {call}))
    return [
        f"{optimizer} steps {own / trainable:.0%} of what is trained, the weights of linear layers; {rest} the rest"
    ]


def _list_matrices(groups: Sequence[dict[str, Any]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the matrices that matrix rules step, by name."""
    stepped = [g for g in groups if parse_optimizer(g["rule"]).placement == MATRIX]
    return {unit.name: unit.shape for group in stepped for unit in list_units(group)}


def _count_state(groups: Sequence[dict[str, Any]], setup: Setup) -> int:
    """Return the bytes of optimizer state of the rank that has most.

    State of elementwise rules is spread over the ranks, from ZeRO-1 on; that of a matrix is whole, with its owner.
    """
    bytes_by_name = state_by_name(groups)
    matrices = _list_matrices(groups)
    spread = sum(bytes_by_name.values()) - sum(bytes_by_name[name] for name in matrices)
    bytes_by_rank = [0] * setup.ranks
    for name, owner in assign_owners(matrices, setup.ranks).items():
        bytes_by_rank[owner] += bytes_by_name[name]
    return max(bytes_by_rank) + (-(-spread // setup.ranks) if setup.zero else spread)


def _count_buffers(setup: Setup, groups: Sequence[dict[str, Any]], trainable: int, share: int) -> tuple[int, list[str]]:
    """Return the bytes of short-lived tensors, and advice about them.

    They are DeepSpeed's buckets, and what the optimizer needs for one matrix at its owner, or for one shard.
    """
    notes = []
    buffers = 0
    if setup.zero >= 2 and setup.ranks > 1:
        buffers += DTYPES[setup.dtype] * min(setup.bucket, trainable)
        if setup.bucket < trainable or setup.bucket == DEFAULT_BUCKET:
            notes.append("reduce_bucket_size sets the buffers; 5e7 instead of DeepSpeed's 5e8 costs little speed")
    matrices = _list_matrices(groups).values()
    buffers += 3 * 4 * max(map(math.prod, matrices), default=0)  # gradient, direction, one temporary
    if not matrices:
        largest = max((math.prod(unit.shape) for g in groups for unit in list_units(g)), default=0)
        buffers += 2 * 4 * min(largest, share if setup.zero else largest)  # gradient and direction of one shard
    return buffers, notes


def estimate_activations(config: Any, setup: Setup, size: int) -> int:
    """Estimate the bytes of the activations of a transformer with fused attention and without dropout.

    A token keeps 8 widths in a layer (inputs of norms and projections, Q, K, V) and 2 inner widths of its MLP, or 4 if
    that is gated. Logits are kept in float32 with their gradient.

    Args:
        config: the model's configuration, with transformers' names of sizes.
        setup: batch, length and checkpointing.
        size: bytes of one entry of an activation.

    Returns:
        Bytes; 0 if the configuration has no sizes.
    """
    width = getattr(config, "hidden_size", 0)
    layers = getattr(config, "num_hidden_layers", 0)
    vocabulary = getattr(config, "vocab_size", 0)
    inner = getattr(config, "intermediate_size", 0) or 4 * width
    inner_widths = 4 if getattr(config, "hidden_act", "") == "silu" else 2
    tokens = setup.micro_batch * setup.length
    layer = tokens * (8 * width + inner_widths * inner) * size
    stack = layers * tokens * width * size + layer if setup.checkpointing else layers * layer
    logits = tokens * vocabulary * (2 * 4 + size) if vocabulary else 0
    return int(stack + logits)
