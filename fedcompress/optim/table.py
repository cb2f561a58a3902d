"""``OPTIMIZERS`` is the one literal table of optimizers; settings and commands name its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedcompress.call_syntax import parse_call
from fedcompress.optim.base import OptimizerRule
from fedcompress.optim.rules.adamp import AdamP
from fedcompress.optim.rules.adamw import AdamW, AdamW8bit
from fedcompress.optim.rules.apollo import Apollo, ApolloMini
from fedcompress.optim.rules.dct import DCTAdamW
from fedcompress.optim.rules.fira import Fira
from fedcompress.optim.rules.frugal import Frugal
from fedcompress.optim.rules.galore import GaLore
from fedcompress.optim.rules.gradnormlorp import GradNormLoRP
from fedcompress.optim.rules.id3 import ID3
from fedcompress.optim.rules.layerwise import LISA, BAdam, Layerwise
from fedcompress.optim.rules.ldadam import LDAdam
from fedcompress.optim.rules.lift import LIFT
from fedcompress.optim.rules.lion import Lion
from fedcompress.optim.rules.qgalore import QGaLore
from fedcompress.optim.rules.schedule_free import ScheduleFree
from fedcompress.optim.rules.sgd import SGD
from fedcompress.optim.rules.sign import SignSGD
from fedcompress.optim.state.moment_storage import count_stored_bytes
from fedcompress.optim.units import list_units


@dataclass(frozen=True, kw_only=True)
class OptimizerRow:
    """A row says which rule an optimizer runs, and where it comes from.

    Args:
        config: the rule, a dataclass of its parameters.
        law: what one step does, in a phrase.
        paper: where the method was published.
        matrices_only: whether the rule is for weights of linear layers alone. Embeddings, heads, norms and biases then
            get AdamW with the same kind of states.
    """

    config: type[OptimizerRule]
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
    "apollo": OptimizerRow(
        config=Apollo,
        law="the gradient, each channel scaled as Adam does in a random projection",
        paper="Zhu et al. 2024 (arXiv:2412.05270)",
        matrices_only=True,
    ),
    "apollo-mini": OptimizerRow(
        config=ApolloMini,
        law="apollo(rank=1,scaling=tensor,scale=128)",
        paper="Zhu et al. 2024 (arXiv:2412.05270)",
        matrices_only=True,
    ),
    "badam": OptimizerRow(
        config=BAdam, law="Adam on one layer after another", paper="Luo et al. 2024 (arXiv:2404.02827)"
    ),
    "dct-adamw": OptimizerRow(
        config=DCTAdamW,
        law="Adam in the cosines that hold most of the gradient",
        paper="Modoranu et al. 2025 (arXiv:2505.17967)",
        matrices_only=True,
    ),
    "fira": OptimizerRow(
        config=Fira,
        law="galore, and the rest of the gradient by the scale that Adam has in the subspace",
        paper="Chen et al. 2024 (arXiv:2410.01623)",
        matrices_only=True,
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
    "gradnormlorp": OptimizerRow(
        config=GradNormLoRP,
        law="galore on the directions of a weight's rows, Adam on their lengths",
        paper="Huang et al. 2024 (arXiv:2412.19616)",
        matrices_only=True,
    ),
    "id3": OptimizerRow(
        config=ID3,
        law="Adam on entries with large gradients, more of them at each step",
        paper="Agarwal et al. 2024 (arXiv:2408.14470)",
        matrices_only=True,
    ),
    "ldadam": OptimizerRow(
        config=LDAdam,
        law="Adam in a subspace that follows the gradient at every step, with error feedback",
        paper="Robert et al. 2024 (arXiv:2410.16103)",
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
    "q-galore": OptimizerRow(
        config=QGaLore,
        law="galore with a basis of 4 bits that is drawn anew ever less often",
        paper="Zhang et al. 2024 (arXiv:2407.08296)",
        matrices_only=True,
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


def parse_optimizer(text: str, *, field: str = "optimizer") -> OptimizerRule:
    """Parse ``name`` or ``name(key=value,...)`` into a rule.

    >>> parse_optimizer("frugal(density=0.5)").state
    'fp32'

    Args:
        text: the call; parameters that it leaves out have their defaults.
        field: name of the setting that the text was given for, for errors.

    Raises:
        ConfigError: unknown name or key, or a value out of range; lists the choices.
    """
    return parse_call(text, {name: row.config for name, row in OPTIMIZERS.items()}, field)


def state_bytes(rule: OptimizerRule, shape: tuple[int, ...]) -> int:
    """Return the bytes of state that a rule keeps for a whole parameter.

    >>> state_bytes(parse_optimizer("adamw8bit"), (1024, 1024)) / 1024**2  # bytes an entry; each block has a scale
    2.03125
    """
    return sum(count_stored_bytes(rule.state, n) for n in rule.sizes(shape).values()) + rule.other_bytes(shape)


def state_by_name(groups: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the bytes of state of each parameter, or slice of an expert, from an optimizer's parameter groups.

    For rules that train a layer at a time, these are means over time. Their sum is what exists at any time, if all
    layers are alike.
    """
    layers = 1 + max((layer for g in groups for layer in g["layers"]), default=-1)
    bytes_by_name = {}
    for group in groups:
        rule = parse_optimizer(group["rule"])
        for unit in list_units(group):
            share = rule.active_share(unit.layer, layers) if isinstance(rule, Layerwise) else 1.0
            bytes_by_name[unit.name] = round(share * state_bytes(rule, unit.shape))
    return bytes_by_name
