"""The one literal table of server optimizers is here, and the parser of their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedcompress.call_syntax import parse_call
from fedcompress.merging.server_optim.adagrad import Adagrad
from fedcompress.merging.server_optim.adam import Adam
from fedcompress.merging.server_optim.base import ServerOptimizer
from fedcompress.merging.server_optim.momentum import Momentum
from fedcompress.merging.server_optim.nesterov import Nesterov
from fedcompress.merging.server_optim.sgd import Sgd
from fedcompress.merging.server_optim.yogi import Yogi


@dataclass(frozen=True, kw_only=True)
class ServerOptimizerRow:
    """A row describes one server optimizer."""

    config: type[Any]  # the optimizer's class
    law: str  # its formula
    slots: int  # float32 values that it remembers for each parameter
    paper: str  # where it is from


_ADAPTIVE = "Reddi et al. 2021 (arXiv:2003.00295), algorithm 2"
SERVER_OPTIMIZERS: dict[str, ServerOptimizerRow] = {
    "adagrad": ServerOptimizerRow(config=Adagrad, law="v += step^2; lr m / (sqrt v + tau)", slots=2, paper=_ADAPTIVE),
    "adam": ServerOptimizerRow(config=Adam, law="v = mean of step^2; lr m / (sqrt v + tau)", slots=2, paper=_ADAPTIVE),
    "momentum": ServerOptimizerRow(
        config=Momentum, law="m = momentum m + step; lr m", slots=1, paper="Hsu et al. 2019 (arXiv:1909.06335)"
    ),
    "nesterov": ServerOptimizerRow(
        config=Nesterov,
        law="m = momentum m + step; lr (step + momentum m)",
        slots=1,
        paper="DiLoCo, Douillard et al. 2023 (arXiv:2311.08105)",
    ),
    "sgd": ServerOptimizerRow(config=Sgd, law="lr step", slots=0, paper="McMahan et al. 2017 (arXiv:1602.05629)"),
    "yogi": ServerOptimizerRow(
        config=Yogi, law="v moves to step^2 by additions; lr m / (sqrt v + tau)", slots=2, paper=_ADAPTIVE
    ),
}


def parse_server_optimizer(text: str, *, field: str = "server-optimizer") -> ServerOptimizer:
    """Parse a server optimizer from ``name`` or ``name(key=value,...)``.

    Raises:
        ConfigError: a name or key is unknown or a value is out of range; the message lists the choices.
    """
    optimizer: ServerOptimizer = parse_call(text, {name: row.config for name, row in SERVER_OPTIMIZERS.items()}, field)
    return optimizer
