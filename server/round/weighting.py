"""How much each update counts, from what its header says and the run's list."""

from __future__ import annotations

from collections.abc import Sequence

from fedcompress.merging import site_weights
from fedcompress.merging.weighting import Given, Weighting
from fedcompress.wire import Header

LOSS = "train_loss"  # metric of an update


def compute_site_weights(
    policy: Weighting, headers: Sequence[Header], ages: Sequence[int] | None = None
) -> list[float]:
    """Weights of updates; ``ages`` are the versions published since those they were trained from, 0 if left out.

    Raises:
        ConfigError: a header lacks the loss, or its site is not in the list, and the policy needs it.
    """
    listed = policy.table if isinstance(policy, Given) else {}
    return site_weights(
        policy,
        examples=[h.examples for h in headers],
        losses=[h.metrics.get(LOSS) for h in headers],
        staleness=None if ages is None else [float(age) for age in ages],
        given=[listed.get(h.site) for h in headers],
    )
