"""An optimizer is built here from a model and the name of a rule."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fedcompress.call_syntax import format_call
from fedcompress.errors import ConfigError
from fedcompress.optim.base import MATRIX as WHOLE
from fedcompress.optim.base import OptimizerRule, check_rate
from fedcompress.optim.engine.parameter_roles import (
    EMBEDDING,
    EXPERTS,
    HEAD,
    MATRIX,
    NamedParameter,
    list_named_parameters,
)
from fedcompress.optim.table import OPTIMIZERS, parse_optimizer

LOG = logging.getLogger("fedcompress.optim")
EXTRAS = (EMBEDDING, HEAD)  # roles that a rule for matrices may be given beside linear layers


def build_optimizer(
    model: Any,
    optimizer: str,
    *,
    lr: float,
    weight_decay: float = 0.0,
    seed: int = 0,
    also: tuple[str, ...] = (),
    rest: str = "",
    rest_lr: float | None = None,
    replicate: bool = False,
) -> Any:
    """Build a ``torch.optim.Optimizer`` over the trainable parameters of a model.

    It works in plain torch, in ``deepspeed.initialize(optimizer=...)``, in accelerate and in
    ``Trainer(optimizers=...)``. Rules for matrices get the weights of linear layers, and those of experts one by one;
    embeddings, heads, norms and biases get ``rest``. Norms and biases have no weight decay.

    >>> import torch
    >>> model = torch.nn.Linear(6, 8)
    >>> optimizer = build_optimizer(model, "galore(rank=2)", lr=1e-3)
    >>> [(group["names"], group["rule"]) for group in optimizer.param_groups]
    [(['weight'], 'galore(rank=2)'), (['bias'], 'adamw')]

    Args:
        model: a module. Build before ``deepspeed.initialize``, and after ``fully_shard``, which makes new parameters.
        optimizer: ``name`` or ``name(key=value,...)``, as ``frugal(density=0.25,state=8bit)``.
        lr: learning rate.
        weight_decay: decoupled weight decay, which is multiplied by the learning rate.
        seed: seed of what rules draw; it must be equal on all ranks.
        also: what a rule for matrices gets beside linear layers; any of ``embedding`` and ``head``.
        rest: rule of the other parameters; AdamW with the same kind of states if empty.
        rest_lr: learning rate of the other parameters; ``lr`` if left out.
        replicate: under data parallelism each rank steps every matrix, so that a checkpoint of one rank has all; else
            each matrix has one rank that steps it. Without effect where weights or states are sharded.

    Returns:
        A ``LowMemoryOptimizer``.

    Raises:
        ConfigError: an unknown name, a value out of range, a parameter that the rule cannot have, or nothing to train.
    """
    from fedcompress.optim.engine.optimizer import LowMemoryOptimizer

    rule = parse_optimizer(optimizer)
    _refuse_flat_parameters(rule, model)
    parameters = list_named_parameters(model)
    _check_settings({"lr": lr, "weight-decay": weight_decay, "rest-lr": rest_lr or 0.0}, also)
    if not parameters:
        raise ConfigError("model", type(model).__name__, "must have a parameter that requires a gradient")
    other_rule = parse_optimizer(rest, field="rest") if rest else parse_optimizer(f"adamw(state={rule.state})")
    other_lr = lr if rest_lr is None else rest_lr
    chosen, others = split_parameters(rule, parameters, also)
    _check_rest(rule, other_rule, chosen, others)
    groups = [
        *_build_groups(rule, chosen, lr, weight_decay),
        *_build_groups(other_rule, others, other_lr, weight_decay),
    ]
    own = [group for group in groups if group["params"]]
    return LowMemoryOptimizer(own, lr=lr, weight_decay=weight_decay, seed=seed, replicate=replicate)


def _check_rest(
    rule: OptimizerRule, other_rule: OptimizerRule, chosen: list[NamedParameter], others: list[NamedParameter]
) -> None:
    """Refuse a rule of the rest that cannot have it, and warn if the rest is all there is."""
    if not chosen:
        text = "%s steps nothing, since no weight that is trained is of a linear layer; %s steps all"
        LOG.warning(text, format_call(rule), format_call(other_rule))
    for parameter in others:
        other_rule.check(parameter.name, parameter.shape)


def _refuse_flat_parameters(rule: OptimizerRule, model: Any) -> None:
    """Raise ``ConfigError`` for a rule for matrices under FSDP1, which flattens parameters before anyone sees them."""
    flattens = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    if flattens and OPTIMIZERS[rule.name].matrices_only:
        raise ConfigError(
            "model", "FullyShardedDataParallel", f"must be sharded by fully_shard (FSDP2) for {rule.name}"
        )


def _check_settings(rates: dict[str, float], also: tuple[str, ...]) -> None:
    for field, value in rates.items():
        check_rate(field, value)
    unknown = sorted(set(also) - set(EXTRAS))
    if unknown:
        raise ConfigError("also", unknown, f"must be of {list(EXTRAS)}")


def split_parameters(
    rule: OptimizerRule, parameters: Sequence[NamedParameter], also: Sequence[str] = ()
) -> tuple[list[NamedParameter], list[NamedParameter]]:
    """Split parameters into those that a rule steps, and those that are left to the rule of the rest.

    A matrix that the rule cannot have, as one without entries, is left to the rest: one such matrix is no reason to
    refuse a model.

    Args:
        rule: that was asked for.
        parameters: of the model.
        also: roles besides that of a matrix that the rule is to step.

    Returns:
        Those of the rule, and the others.

    Raises:
        ConfigError: the rule accepts matrices by their role, and can have none of them.
    """
    accepted = [p for p in parameters if _accepts(rule, p, tuple(also))]
    fitting = [p for p in accepted if _fits(rule, p)]
    if accepted and not fitting:
        largest = max(accepted, key=lambda p: min(p.shape, default=0))
        rule.check(largest.name, _read_unit_shape(rule, largest))
    names = {p.name for p in fitting}
    return fitting, [p for p in parameters if p.name not in names]


def _fits(rule: OptimizerRule, parameter: NamedParameter) -> bool:
    """Return whether a rule can step a parameter of this shape."""
    try:
        rule.check(parameter.name, _read_unit_shape(rule, parameter))
    except ConfigError:
        return False
    return True


def _accepts(rule: OptimizerRule, parameter: NamedParameter, also: tuple[str, ...]) -> bool:
    """Return whether a parameter is stepped by the rule that was asked for, and not by that of the rest."""
    if not OPTIMIZERS[rule.name].matrices_only:
        return True
    return parameter.role in (MATRIX, EXPERTS) or (parameter.role in also and len(parameter.shape) == 2)


def _is_cut(rule: OptimizerRule, parameter: NamedParameter) -> bool:
    """Return whether a rule steps the matrix of each expert by itself."""
    return parameter.role == EXPERTS and (OPTIMIZERS[rule.name].matrices_only or rule.placement == WHOLE)


def _read_unit_shape(rule: OptimizerRule, parameter: NamedParameter) -> tuple[int, ...]:
    """Return the shape of what a rule sees of a parameter at once."""
    return parameter.shape[1:] if _is_cut(rule, parameter) else parameter.shape


def _build_groups(
    rule: OptimizerRule, parameters: list[NamedParameter], lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Build a group of what has two sides or more, and one without weight decay of vectors; either may be empty.

    Biases are vectors also where those of all experts lie in one parameter.
    """
    is_vector = {p.name: len(p.shape) < 2 or p.name.endswith("bias") for p in parameters}
    return [
        _build_group(rule, [p for p in parameters if not is_vector[p.name]], lr, weight_decay),
        _build_group(rule, [p for p in parameters if is_vector[p.name]], lr, 0.0),
    ]


def _build_group(
    rule: OptimizerRule, parameters: list[NamedParameter], lr: float, weight_decay: float
) -> dict[str, Any]:
    return {
        "params": [p.parameter for p in parameters],
        "names": [p.name for p in parameters],
        "shapes": [list(p.shape) for p in parameters],
        "layers": [p.layer for p in parameters],
        "stacks": [p.shape[0] if _is_cut(rule, p) else 0 for p in parameters],
        "rule": format_call(rule),
        "lr": lr,
        "weight_decay": weight_decay,
    }
