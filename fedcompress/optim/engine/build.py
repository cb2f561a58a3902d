"""From a model and the name of a rule to a torch optimizer."""

from __future__ import annotations

from typing import Any

from fedcompress.call_syntax import format_call
from fedcompress.errors import ConfigError
from fedcompress.optim.base import Rule, check_rate
from fedcompress.optim.engine.parameter_roles import EMBEDDING, HEAD, MATRIX, Named, named_parameters
from fedcompress.optim.table import OPTIMIZERS, parse_optimizer

EXTRAS = (EMBEDDING, HEAD)


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
) -> Any:
    """A ``torch.optim.Optimizer`` over the trainable parameters of a model.

    It is for plain torch, ``deepspeed.initialize(optimizer=...)``, accelerate and
    ``Trainer(optimizers=...)``. Rules for matrices get the weights of linear layers; embeddings,
    heads, norms and biases get ``rest``. Norms and biases have no weight decay.

    Args:
        model: a module; before ``deepspeed.initialize``, and after ``fully_shard``, which makes new parameters.
        optimizer: ``name`` or ``name(key=value,...)``, as ``frugal(density=0.25,state=8bit)``.
        lr: learning rate.
        weight_decay: decoupled, times ``lr``.
        seed: of what rules draw; equal on all ranks.
        also: of ``embedding`` and ``head``: what a rule for matrices gets beside linear layers.
        rest: rule of the other parameters; AdamW with the same kind of states if empty.
        rest_lr: its learning rate; ``lr`` if left out.

    Raises:
        ConfigError: an unknown name, a value out of range, a parameter that the rule cannot
            have, or nothing to train.
    """
    from fedcompress.optim.engine.optimizer import LowMemoryOptimizer

    rule, parameters = parse_optimizer(optimizer), named_parameters(model)
    _check({"lr": lr, "weight-decay": weight_decay, "rest-lr": rest_lr or 0.0}, also)
    if not parameters:
        raise ConfigError("model", type(model).__name__, "must have a parameter that requires a gradient")
    other = parse_optimizer(rest, field="rest") if rest else parse_optimizer(f"adamw(state={rule.state})")
    chosen = [p for p in parameters if _takes(rule, p, also)]
    for parameter in chosen:
        rule.check(parameter.name, parameter.shape)
    left = [p for p in parameters if not _takes(rule, p, also)]
    groups = [_group(rule, [p for p in chosen if len(p.shape) > 1], lr, weight_decay)]
    groups += [_group(rule, [p for p in chosen if len(p.shape) < 2], lr, 0.0)]
    other_lr = lr if rest_lr is None else rest_lr
    groups += [_group(other, [p for p in left if len(p.shape) > 1], other_lr, weight_decay)]
    groups += [_group(other, [p for p in left if len(p.shape) < 2], other_lr, 0.0)]
    return LowMemoryOptimizer([g for g in groups if g["params"]], lr=lr, weight_decay=weight_decay, seed=seed)


def _check(rates: dict[str, float], also: tuple[str, ...]) -> None:
    for field, value in rates.items():
        check_rate(field, value)
    unknown = sorted(set(also) - set(EXTRAS))
    if unknown:
        raise ConfigError("also", unknown, f"must be of {list(EXTRAS)}")


def _takes(rule: Rule, parameter: Named, also: tuple[str, ...]) -> bool:
    if not OPTIMIZERS[rule.name].matrices_only:
        return True
    return parameter.role == MATRIX or (parameter.role in also and len(parameter.shape) == 2)


def _group(rule: Rule, parameters: list[Named], lr: float, weight_decay: float) -> dict[str, Any]:
    return {
        "params": [p.parameter for p in parameters],
        "names": [p.name for p in parameters],
        "shapes": [list(p.shape) for p in parameters],
        "layers": [p.layer for p in parameters],
        "rule": format_call(rule),
        "lr": lr,
        "weight_decay": weight_decay,
    }
