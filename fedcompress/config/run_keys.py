"""Describes every key of the run config for people: what it does, in which unit, and when to change it.

``docs/run-config.md`` is made of this table: ``python -m fedcompress.config.run_keys > docs/run-config.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from fedcompress.config.run_config import RunConfig


@dataclass(frozen=True)
class RunKey:
    """Describes one key.

    Attributes:
        unit: of the value; ``text`` and ``yes or no`` where it has none.
        what: it does.
        when: to change it.
    """

    unit: str
    what: str
    when: str


# Keys by section, as a reader looks for them. The first paragraph of the page has the defaults' source.
RUN_KEYS: dict[str, dict[str, RunKey]] = {
    "The run": {
        "run": RunKey("text", "names the run; it is continued under this name", "for each new run"),
        "state-dir": RunKey(
            "path", "has ledger, states, keys and logs", "`fedcompress run` sets it from `[coordinator]`"
        ),
        "initial-adapter": RunKey("path", "is what `fedcompress template` wrote", "always: it has no default"),
        "base-fingerprint": RunKey(
            "hex", "is the SHA-256 of the base; sites with another are refused", "never by hand"
        ),
        "rounds": RunKey(
            "rounds", "are made in all; a finished run goes on if it is raised", "by the curve of the accuracy"
        ),
        "seed": RunKey("integer", "fixes all that is drawn at random", "to repeat a run with other draws"),
        "require-signatures": RunKey(
            "yes or no", "refuses replies that no registered key has signed", "false on a network of your own"
        ),
    },
    "Who takes part": {
        "min-sites": RunKey("sites", "must be connected before the run begins", "to the number that you expect"),
        "quorum": RunKey("updates", "must be admitted, or the round waits on", "lower, if sites are often away"),
        "min-cohort": RunKey(
            "updates",
            "are the least quorum: of fewer, sites can compute each other's",
            "only where sites may see each other's updates",
        ),
        "sites-per-round": RunKey(
            "sites", "are merged in a round; 0: all that are connected", "with tens of sites or more"
        ),
        "sampling": RunKey(
            "text",
            "chooses the sites of a round: uniform, data or bandwidth",
            "data, if large sites should come more often",
        ),
        "over-sampling": RunKey(
            "factor", "times sites-per-round are asked; the first to answer are merged", "1.3, if some are always slow"
        ),
        "patience": RunKey("deadlines", "are added to a round without a quorum", "0, to fail at once"),
        "max-refusals": RunKey("refusals", "in a row leave a site out for 1, 2, 4, ... rounds; 0: never", "seldom"),
    },
    "Time": {
        "round-timeout": RunKey(
            "seconds", "are waited for the replies of a round", "to twice the slowest site's round"
        ),
        "join-timeout": RunKey("seconds", "are waited for min-sites", "to a day, if sites are started by hand"),
        "train-timeout": RunKey(
            "seconds", "a site trains at most, and sends what it has; 0: no limit", "if sites differ much in speed"
        ),
        "buffer": RunKey(
            "updates",
            "make a version while other sites go on (asynchronous rounds); 0: a round waits for all",
            "if rounds wait for slow sites",
        ),
        "late": RunKey(
            "text",
            "returns a late update to its site's residual, or merges it later for less weight",
            "merge, with a buffer or slow sites",
        ),
        "max-staleness": RunKey(
            "versions",
            "an update may be late; in a buffer at least two turns of all sites",
            "with late = merge",
        ),
    },
    "Training": {
        "steps": RunKey("steps", "a site makes in a round", "more saves bytes, fewer keeps sites together"),
        "batch-size": RunKey("examples", "are in a step, over all ranks of a site", "by memory and data"),
        "lr": RunKey("rate", "is the learning rate before the schedule", "first, if a run does not learn"),
        "schedule": RunKey("call", "is the learning rate's course over all rounds", "cosine or linear for long runs"),
        "optimizer": RunKey("call", "trains at the sites ([optimizers](optimizers.md))", "to save memory"),
        "optimizer-state": RunKey(
            "text", "resets the optimizer at each round, or keeps it", "keep, with many short rounds"
        ),
        "clip": RunKey("norm", "bounds the gradient; 0: it is not clipped", "seldom"),
        "correction": RunKey(
            "call", "holds sites back that drift apart, as `fedprox(mu=0.01)`", "if sites have very different data"
        ),
        "max-length": RunKey("tokens", "of an example are read; longer ones are cut", "to what your rows need"),
    },
    "Bytes": {
        "codec": RunKey("call", "codes updates ([codecs](codecs.md))", "none, to compare"),
        "downlink-codec": RunKey("call", "codes the states that sites are sent", "with the codec"),
        "feedback": RunKey("factor", "of what was left out is sent later; 0 drops it", "seldom"),
        "feedback-warmup": RunKey("rounds", "until feedback has its value", "seldom"),
        "feedback-reset": RunKey("rounds", "after which residuals are dropped; 0: never", "seldom"),
        "residual-store": RunKey(
            "text", "is how sites keep what was left out: none (float32), bf16 or int8", "to save disk with full models"
        ),
    },
    "Merging": {
        "rule": RunKey("call", "merges the updates ([merging](merging.md))", "a robust rule, if a site may be hostile"),
        "space": RunKey(
            "text", "is what elementwise rules merge: factors or product", "product, with ties, dare and the like"
        ),
        "weighting": RunKey(
            "call", "is how much a site counts ([merging](merging.md))", "uniform, if all sites should count alike"
        ),
        "server-optimizer": RunKey(
            "call", "makes the step from the merged update", "momentum, if rounds go to and fro"
        ),
        "server-lr": RunKey(
            "factor", "of the merged update is taken, with sgd", "below 1, if the loss rises between rounds"
        ),
        "norm-bound": RunKey(
            "factor", "of the median norm is the longest update; 0: no bound", "lower, if a site may be hostile"
        ),
        "max-norm": RunKey(
            "norm", "is the longest update whatever the others are; 0: no bound", "to ten times the norms in the ledger"
        ),
    },
    "Keeping": {
        "retention": RunKey("versions", "are kept whole, to fall back on", "more, if there is room"),
    },
}

_HEAD = """\
# The run config

Every key of `[run]` in the coordinator's file, which is also the run config of the Flower app. A *call* is `name` or
`name(key=value,...)`. This page is made from the code: `python -m fedcompress.config.run_keys > docs/run-config.md`.
"""


def describe_run_keys() -> str:
    """Return the page with all keys, their defaults, units and uses, as Markdown."""
    defaults = {f.name.replace("_", "-"): f.default for f in fields(RunConfig)}
    lines = [_HEAD]
    for section, keys in RUN_KEYS.items():
        lines += [f"\n## {section}\n", "| key | default | unit | it | change it |", "|---|---|---|---|---|"]
        for key, row in keys.items():
            lines.append(f"| `{key}` | {_format(defaults[key])} | {row.unit} | {row.what} | {row.when} |")
    return "\n".join(lines) + "\n"


def _format(default: object) -> str:
    """Return a default as TOML has it; empty text is a dash."""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, str):
        return f'`"{default}"`' if default else "-"
    return f"`{default}`"


if __name__ == "__main__":
    print(describe_run_keys(), end="")
