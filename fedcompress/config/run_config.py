"""The coordinator's settings of a run are parsed once, at the edge, from the flat scalars of Flower's run config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from fedcompress.codecs import CodecSpec
from fedcompress.config.training_options import TrainingOptions, check_positive
from fedcompress.errors import ConfigError, one_of
from fedcompress.merging import RULES, check_space, parse_rule, parse_server_optimizer, parse_weighting
from fedcompress.merging.server_optim import ServerOptimizer, Sgd
from fedcompress.merging.weighting import Weighting
from fedcompress.types import NAME_PATTERN

SAMPLINGS = ("uniform", "data", "bandwidth")  # ways to choose the sites of a round
PRIVATE_COHORT = 3  # fewest updates of which a version shows no site that of another one
LATE = ("return", "merge")  # what becomes of an update that comes after its round was merged


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainingOptions):
    """A run config holds all settings of a run; the keys of Flower's run config are these names with dashes."""

    run: str = "run"  # name of the run
    state_dir: str = ""  # folder of ledger, blobs and keys
    initial_adapter: str = ""  # folder that `fedcompress template` makes: objective, config, layout and start
    base_fingerprint: str = ""  # hex; empty: the template's, or else the first one that a site reports
    min_sites: int = 3  # sites that must be connected before the run begins
    sites_per_round: int = 0  # number of updates that a round merges; 0: those of all connected sites
    sampling: str = "uniform"  # how the sites of a round are chosen: uniform, data or bandwidth
    over_sampling: float = 1.0  # sites-per-round times this are asked; the first sites-per-round updates are merged
    quorum: int = 3  # a round with fewer updates is not merged
    min_cohort: int = PRIVATE_COHORT  # least quorum: a version of fewer updates shows each site those of the others
    patience: int = 3  # times that a round without a quorum is given another round-timeout
    buffer: int = 0  # a round is merged after so many updates while other sites go on training; 0: it waits for all
    late: str = "return"  # a late update goes back into the site's residual, or (merge) into a later round, for less
    max_staleness: int = 4  # an update that is more versions late than this is returned all the same
    norm_bound: float = 10.0  # updates of more than so many times the median norm are refused; 0: none is
    max_norm: float = 1e6  # updates of a larger norm are refused whatever the others are, lone ones too; 0: none is
    max_refusals: int = 3  # a site with so many refusals in a row is left out for a while; 0: never
    retention: int = 2  # newest versions of which everything is kept, to fall back on
    round_timeout: float = 3600.0  # seconds that a round waits for replies
    join_timeout: float = 300.0  # seconds to wait for min_sites
    downlink_codec: str = "lora-transform-down"  # codec of the states that the coordinator sends
    rule: str = "lora-ridge"  # merge rule, a row of RULES with its parameters
    space: str = "factors"  # what elementwise rules merge of LoRA modules: factors or product
    weighting: str = "processed"  # how much a site counts, a row of WEIGHTINGS with its parameters
    server_optimizer: str = "sgd"  # a row of SERVER_OPTIMIZERS with its parameters
    server_lr: float = 1.0  # learning rate of sgd; other server optimizers have their own parameter lr
    train_timeout: float = 0.0  # seconds that a site trains at most in a round; 0: no limit
    require_signatures: bool = True  # refuse replies that no registered key has signed

    CHECK_ORDER: ClassVar[tuple[str, ...]] = (
        "run",
        "state_dir",
        "initial_adapter",
        "rounds",
        "min_sites",
        "quorum",
        "min_cohort",
        "round_timeout",
        "join_timeout",
        "over_sampling",
        "max_staleness",
        "retention",
        "batch_size",
        "lr",
        "max_length",
        "steps",
        "sites_per_round",
        "server_lr",
        "clip",
        "train_timeout",
        "seed",
        "patience",
        "buffer",
        "norm_bound",
        "max_norm",
        "max_refusals",
        "seed-size",
        "codec",
        "downlink_codec",
        "rule",
        "participation",
        "rule-quorum",
        "weighting",
        "server_optimizer",
        "feedback",
        "optimizer",
        "schedule",
        "correction",
    )

    @staticmethod
    def field_name(name: str) -> str:
        """Return the key of a setting in Flower's run config."""
        return name.replace("_", "-")

    def check(self, name: str, field: str) -> None:
        """Perform one check: raise ``ConfigError`` unless a setting, or how it goes with others, is allowed."""
        match name:
            case "run":
                if not NAME_PATTERN.fullmatch(self.run):
                    raise ConfigError(field, repr(self.run), f"must match {NAME_PATTERN.pattern}")
            case "state_dir" | "initial_adapter":
                if not getattr(self, name):
                    raise ConfigError(field, "''", "must be set in the run config")
            case "min_sites" | "quorum" | "min_cohort" | "round_timeout" | "join_timeout" | "over_sampling":
                check_positive(field, getattr(self, name))
            case "max_staleness" | "retention":
                check_positive(field, getattr(self, name))
            case "sites_per_round" | "server_lr" | "train_timeout" | "seed":
                check_positive(field, getattr(self, name), zero=True)
            case "patience" | "buffer" | "norm_bound" | "max_norm" | "max_refusals":
                check_positive(field, getattr(self, name), zero=True)
            case "seed-size":
                if self.seed >= 1 << 64:
                    raise ConfigError("seed", self.seed, "must be below 2^64")
            case "downlink_codec":
                CodecSpec.parse(self.downlink_codec, field=field)
            case "rule":
                check_space(parse_rule(self.rule), self.space)
            case "participation":
                self._check_participation()
            case "rule-quorum":
                self._check_quorum_of_rule()
            case "weighting":
                _ = self.weigh_by  # parsing checks it
            case "server_optimizer":
                _ = self.outer  # parsing checks it
            case _:
                super().check(name, field)

    def _check_participation(self) -> None:
        """Raise ``ConfigError`` unless the settings of who takes part in a round go together."""
        for name, choices in (("sampling", SAMPLINGS), ("late", LATE)):
            if getattr(self, name) not in choices:
                raise ConfigError(name, getattr(self, name), one_of(choices, getattr(self, name)))
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
        if self.quorum < self.min_cohort:
            rule = (
                f"must be at least {self.min_cohort}, the min-cohort: a version of fewer updates shows each site those"
                " of the others; where that may be, set min-cohort lower, too"
            )
            raise ConfigError("quorum", self.quorum, rule)
        if 0 < self.norm_bound < 1:
            raise ConfigError("norm-bound", self.norm_bound, "must be 0 or at least 1")

    def _check_quorum_of_rule(self) -> None:
        """Raise ``ConfigError`` if a quorum would be too few updates for the merge rule.

        Such a round is to wait for more updates instead of failing when it is merged.
        """
        needed = parse_rule(self.rule).min_updates
        if self.quorum < needed:
            raise ConfigError("quorum", self.quorum, f"must be at least {needed} with rule {self.rule}")

    @property
    def warnings(self) -> list[str]:
        """Return a line for each combination of settings that is allowed but known to go badly together."""
        found = []
        if self.min_cohort < PRIVATE_COHORT:
            who = "the update of one site" if self.min_cohort == 1 else f"the updates of {self.min_cohort} sites"
            found.append(f"min-cohort {self.min_cohort}: a version may be {who}, which others can compute from it")
        rule = parse_rule(self.rule)
        row = RULES[rule.name]
        if row.after_sparse and CodecSpec.parse(self.codec).sparse:
            found.append(f"rule {rule.name} with codec {self.codec}: {row.after_sparse}")
        return found

    @property
    def weigh_by(self) -> Weighting:
        """Return how much a site counts, parsed."""
        return parse_weighting(self.weighting)

    @property
    def outer(self) -> ServerOptimizer:
        """Return the server optimizer, parsed; ``server_lr`` is the learning rate of plain SGD."""
        optimizer = parse_server_optimizer(self.server_optimizer)
        if self.server_lr == 1:
            return optimizer
        if optimizer != Sgd():
            rule = f"must be 1 with server-optimizer {self.server_optimizer}: give lr to that"
            raise ConfigError("server-lr", self.server_lr, rule)
        return Sgd(lr=self.server_lr)

    @property
    def state_path(self) -> Path:
        """Return the state directory as a path."""
        return Path(self.state_dir)


def parse_run_config(flat: Mapping[str, Any]) -> RunConfig:
    """Parse and check Flower's flat run config.

    Args:
        flat: scalars by key, where keys are the names of settings with dashes; an integer may stand for a float.

    Raises:
        ConfigError: unknown key, wrong type, or a value out of range.
    """
    known = {f.name.replace("_", "-"): f for f in fields(RunConfig)}
    kwargs: dict[str, Any] = {}
    for key, value in flat.items():
        if key not in known:
            raise ConfigError(
                key, value, f"unknown key: {one_of(sorted(known), key)} (`fedcompress run --keys` describes them)"
            )
        setting = known[key]
        kind = type(setting.default)
        if kind is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(key, repr(value), f"must be of type {kind.__name__}")
        kwargs[setting.name] = value
    return RunConfig(**kwargs)
