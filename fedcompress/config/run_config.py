"""The coordinator's settings of a run: parsed once, at the edge, from Flower's flat scalars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fedcompress.codecs import CodecSpec, Feedback
from fedcompress.config.drift import parse_drift_correction
from fedcompress.config.schedules import parse_schedule
from fedcompress.config.training_options import check_optimizer, check_positive
from fedcompress.errors import ConfigError
from fedcompress.merging import RULES, check_space, parse_rule, parse_server_optimizer, parse_weighting
from fedcompress.merging.server_optim import ServerOptimizer, Sgd
from fedcompress.merging.weighting import Weighting
from fedcompress.types import NAME

SAMPLINGS = ("uniform", "data", "bandwidth")
LATE = ("return", "merge")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The coordinator's settings. Run-config keys are these names with dashes."""

    run: str = "run"
    state_dir: str = ""
    initial_adapter: str = ""  # folder that `fedcompress template` makes: objective, config, layout and start
    base_fingerprint: str = ""  # hex; empty: the template's, or else the first one seen is kept
    rounds: int = 5
    min_sites: int = 1
    sites_per_round: int = 0  # whose updates a round is to have; 0: all that are there
    sampling: str = "uniform"  # or data, bandwidth: which of them
    over_sampling: float = 1.0  # times sites-per-round are asked, and the first sites-per-round are merged
    quorum: int = 1  # updates without which a round is not merged
    patience: int = 3  # times that a round without a quorum is given another round-timeout
    buffer: int = 0  # updates after which a round is merged while others go on training; 0: it waits for all
    late: str = "return"  # to the site's residual; or merge: in a later round, for less
    max_staleness: int = 4  # versions after which a late update is returned all the same
    norm_bound: float = 10.0  # times the median norm of updates; 0: none
    max_refusals: int = 3  # in a row, after which a site is left out for a while; 0: never
    retention: int = 2  # versions of which everything is kept, to fall back on
    round_timeout: float = 3600.0  # seconds
    join_timeout: float = 300.0  # seconds to wait for min_sites
    steps: int = 20
    batch_size: int = 16
    lr: float = 2e-3
    optimizer: str = "adamw8bit"
    optimizer_state: str = "reset"  # or keep: what a site does with it when a round begins
    codec: str = "lora-transform"
    downlink_codec: str = "lora-transform-down"
    feedback: float = 1.0
    feedback_warmup: int = 0  # rounds over which feedback grows to its value
    feedback_reset: int = 0  # every so many rounds residuals are dropped; 0: never
    residual_store: str = "none"  # how sites keep residuals: none (float32), bf16, int8
    rule: str = "lora-ridge"
    space: str = "factors"  # or product: what elementwise rules merge of LoRA modules
    weighting: str = "examples"  # how much a site counts
    server_optimizer: str = "sgd"
    server_lr: float = 1.0  # of sgd; other server optimizers have their own lr
    schedule: str = "constant"  # of the sites' learning rate, over all rounds
    clip: float = 1.0  # norm of a site's gradient; 0: not clipped
    correction: str = "none"  # of the drift of sites
    train_timeout: float = 0.0  # seconds that a site trains at most in a round; 0: no limit
    max_length: int = 64
    seed: int = 0
    require_signatures: bool = True  # refuse replies that no registered key has signed

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.run):
            raise ConfigError("run", repr(self.run), f"must match {NAME.pattern}")
        for name in ("state_dir", "initial_adapter"):
            if not getattr(self, name):
                raise ConfigError(name.replace("_", "-"), "''", "must be set in the run config")
        for name in (
            "rounds",
            "min_sites",
            "quorum",
            "round_timeout",
            "join_timeout",
            "over_sampling",
            "max_staleness",
            "retention",
            "batch_size",
            "lr",
            "max_length",
        ):
            check_positive(name.replace("_", "-"), getattr(self, name))
        zeros = ("steps", "sites_per_round", "server_lr", "clip", "train_timeout", "seed", "patience", "buffer")
        for name in (*zeros, "norm_bound", "max_refusals"):
            check_positive(name.replace("_", "-"), getattr(self, name), zero=True)
        if self.seed >= 1 << 64:
            raise ConfigError("seed", self.seed, "must be below 2^64")
        for name in ("codec", "downlink_codec"):
            CodecSpec.parse(getattr(self, name), field=name.replace("_", "-"))
        check_space(parse_rule(self.rule), self.space)
        self._check_rounds()
        self._check_quorum()
        _ = self.weigh_by, self.outer, self.error_feedback  # they check their ranges
        check_optimizer("optimizer", self.optimizer, self.optimizer_state)
        parse_schedule(self.schedule, field="schedule")
        parse_drift_correction(self.correction, field="correction")

    def _check_rounds(self) -> None:
        for name, choices in (("sampling", SAMPLINGS), ("late", LATE)):
            if getattr(self, name) not in choices:
                raise ConfigError(name, getattr(self, name), f"must be one of {list(choices)}")
        if self.over_sampling < 1:
            raise ConfigError("over-sampling", self.over_sampling, "must be at least 1")
        if self.over_sampling > 1 and not self.sites_per_round:
            raise ConfigError("over-sampling", self.over_sampling, "needs sites-per-round, which it is times of")
        if self.buffer and self.late != "merge":
            raise ConfigError("late", self.late, "must be merge with a buffer: sites go on training while it is merged")
        if self.buffer and self.quorum > self.buffer:
            raise ConfigError("quorum", self.quorum, f"must be at most {self.buffer}, the buffer")
        if 0 < self.sites_per_round < self.quorum:
            raise ConfigError("quorum", self.quorum, f"must be at most {self.sites_per_round}, the sites-per-round")
        if 0 < self.norm_bound < 1:
            raise ConfigError("norm-bound", self.norm_bound, "must be 0 or at least 1")

    def _check_quorum(self) -> None:
        """A round with too few updates for Krum is to wait for more, not to fail when it merges."""
        needed = parse_rule(self.rule).min_updates
        if self.quorum < needed:
            raise ConfigError("quorum", self.quorum, f"must be at least {needed} with rule {self.rule}")

    @property
    def error_feedback(self) -> Feedback:
        """How both ends keep what their codecs leave out."""
        warmup, reset = self.feedback_warmup, self.feedback_reset
        return Feedback(decay=self.feedback, warmup=warmup, reset=reset, store=self.residual_store)

    @property
    def warnings(self) -> list[str]:
        """What is allowed, and known to go badly together."""
        rule = parse_rule(self.rule)
        told = RULES[rule.name].after_sparse if CodecSpec.parse(self.codec).sparse else ""
        return [f"rule {rule.name} with codec {self.codec}: {told}"] if told else []

    @property
    def weigh_by(self) -> Weighting:
        """How much a site counts."""
        return parse_weighting(self.weighting)

    @property
    def outer(self) -> ServerOptimizer:
        """The server optimizer."""
        optimizer = parse_server_optimizer(self.server_optimizer)
        if self.server_lr == 1:
            return optimizer
        if optimizer != Sgd():
            rule = f"must be 1 with server-optimizer {self.server_optimizer}: give lr to that"
            raise ConfigError("server-lr", self.server_lr, rule)
        return Sgd(lr=self.server_lr)

    @property
    def state_path(self) -> Path:
        """State directory."""
        return Path(self.state_dir)


def parse_run_config(flat: Mapping[str, Any]) -> RunConfig:
    """``RunConfig`` from Flower's flat run config.

    Raises:
        ConfigError: unknown key, wrong type, or a value out of range.
    """
    known = {f.name.replace("_", "-"): f for f in fields(RunConfig)}
    kwargs: dict[str, Any] = {}
    for key, value in flat.items():
        if key not in known:
            raise ConfigError(key, value, f"unknown key: must be one of {sorted(known)}")
        field = known[key]
        kind = type(field.default)
        if kind is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(key, repr(value), f"must be of type {kind.__name__}")
        kwargs[field.name] = value
    return RunConfig(**kwargs)
