"""Weighs each update in the merge, from what its header says and from the weights that the run lists."""

from __future__ import annotations

from collections.abc import Sequence

from fedcompress.merging import site_weights
from fedcompress.merging.weighting import Given, Weighting
from fedcompress.wire import Header

# metrics of an update
LOSS = "train_loss"
STEPS_DONE = "steps_done"  # only where a site made fewer steps than it was asked for


def compute_site_weights(
    policy: Weighting, headers: Sequence[Header], *, steps: int, batch_size: int, ages: Sequence[int] | None = None
) -> list[float]:
    """Compute the weight of each update.

    Args:
        policy: which number of an update is its weight.
        headers: of the updates.
        steps: that a site was asked for in a round.
        batch_size: examples in a step.
        ages: versions that were published since the one that each update was trained from; all 0 if left out.

    Returns:
        Weights above 0, which need not add up to 1.

    Raises:
        ConfigError: a header lacks the loss, or its site is not in the list, and the policy needs it.
    """
    listed = policy.table if isinstance(policy, Given) else {}
    return site_weights(
        policy,
        examples=[header.examples for header in headers],
        processed=[_count_processed(header, steps, batch_size) for header in headers],
        losses=[header.metrics.get(LOSS) for header in headers],
        staleness=None if ages is None else [float(age) for age in ages],
        given=[listed.get(header.site) for header in headers],
    )


def _count_processed(header: Header, steps: int, batch_size: int) -> float:
    """Return the distinct examples that a site trained on: at most what it has, and at most what it was asked for."""
    done = min(header.metrics.get(STEPS_DONE, float(steps)), float(steps))
    return min(float(header.examples), done * batch_size)
