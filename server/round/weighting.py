"""Weighs each update in the merge, from what its header says and from the weights that the run lists."""

from __future__ import annotations

from collections.abc import Sequence

from fedcompress.merging import site_weights
from fedcompress.merging.weighting import Given, Weighting
from fedcompress.wire import Header

LOSS = "train_loss"  # metric of an update


def compute_site_weights(
    policy: Weighting, headers: Sequence[Header], ages: Sequence[int] | None = None
) -> list[float]:
    """Compute the weight of each update.

    Args:
        policy: which number of an update is its weight.
        headers: of the updates.
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
        losses=[header.metrics.get(LOSS) for header in headers],
        staleness=None if ages is None else [float(age) for age in ages],
        given=[listed.get(header.site) for header in headers],
    )
