"""The one literal table of optimizers."""

from __future__ import annotations

from dataclasses import dataclass

from fedcompress.optim.adamp import AdamP
from fedcompress.optim.adamw import AdamW, AdamW8bit
from fedcompress.optim.base import Rule
from fedcompress.optim.frugal import Frugal
from fedcompress.optim.galore import GaLore
from fedcompress.optim.id3 import ID3
from fedcompress.optim.layerwise import LISA, BAdam
from fedcompress.optim.lift import LIFT
from fedcompress.optim.lion import Lion
from fedcompress.optim.schedule_free import ScheduleFree
from fedcompress.optim.sgd import SGD
from fedcompress.optim.sign import SignSGD
from fedcompress.optim.states import stored_bytes
from fedcompress.spec import parse_call


@dataclass(frozen=True, kw_only=True)
class OptimizerRow:
    """One optimizer.

    With ``matrices_only``, embeddings, heads, norms and biases go to AdamW with the same kind of states.
    """

    config: type[Rule]
    law: str
    paper: str
    matrices_only: bool = False


OPTIMIZERS: dict[str, OptimizerRow] = {
    "adamp": OptimizerRow(
        config=AdamP,
        law="Adam, orthogonal to weights that are scale-invariant",
        paper="Heo et al. 2021 (arXiv:2006.08217)",
    ),
    "adamw": OptimizerRow(
        config=AdamW,
        law="m_hat / (sqrt(v_hat) + eps)",
        paper="Loshchilov and Hutter 2019 (arXiv:1711.05101)",
    ),
    "adamw8bit": OptimizerRow(
        config=AdamW8bit,
        law="adamw(state=8bit)",
        paper="Dettmers et al. 2022 (arXiv:2110.02861)",
    ),
    "badam": OptimizerRow(
        config=BAdam, law="Adam on one layer after another", paper="Luo et al. 2024 (arXiv:2404.02827)"
    ),
    "frugal": OptimizerRow(
        config=Frugal,
        law="Adam on a part of each matrix that is drawn anew, the sign of the gradient elsewhere",
        paper="Zmushko et al. 2024 (arXiv:2411.07837)",
        matrices_only=True,
    ),
    "galore": OptimizerRow(
        config=GaLore,
        law="Adam in the leading singular directions of the gradient",
        paper="Zhao et al. 2024 (arXiv:2403.03507)",
        matrices_only=True,
    ),
    "id3": OptimizerRow(
        config=ID3,
        law="Adam on entries with large gradients, more of them at each step",
        paper="Agarwal et al. 2024 (arXiv:2408.14470)",
        matrices_only=True,
    ),
    "lift": OptimizerRow(
        config=LIFT,
        law="Adam on the entries that are large in the weight's low-rank approximation",
        paper="Liu et al. 2025 (arXiv:2506.00772)",
        matrices_only=True,
    ),
    "lion": OptimizerRow(
        config=Lion,
        law="the sign of an interpolated momentum",
        paper="Chen et al. 2023 (arXiv:2302.06675)",
    ),
    "lisa": OptimizerRow(
        config=LISA,
        law="AdamW on a few random layers for a while, and on all that is in no layer",
        paper="Pan et al. 2024 (arXiv:2403.17919)",
    ),
    "schedule-free": OptimizerRow(
        config=ScheduleFree,
        law="Adam's second moment, with an average of the weights instead of a schedule",
        paper="Defazio et al. 2024 (arXiv:2405.15682)",
    ),
    "sgd": OptimizerRow(config=SGD, law="the gradient, or its momentum", paper="Robbins and Monro 1951; Polyak 1964"),
    "signsgd": OptimizerRow(
        config=SignSGD, law="the sign of the gradient", paper="Bernstein et al. 2018 (arXiv:1802.04434)"
    ),
}


def optimizer_named(text: str, *, field: str = "optimizer") -> Rule:
    """A rule from ``name`` or ``name(key=value,...)``.

    Raises:
        ConfigError: unknown name or key, or a value out of range; lists the choices.
    """
    return parse_call(text, {name: row.config for name, row in OPTIMIZERS.items()}, field)  # type: ignore[type-var]


def state_bytes(rule: Rule, shape: tuple[int, ...]) -> int:
    """Bytes of state that a rule keeps for a whole parameter."""
    return sum(stored_bytes(rule.state, n) for n in rule.sizes(shape).values()) + rule.other_bytes(shape)
