"""How much each update counts, from what its header says and the run's list."""

from __future__ import annotations

from collections.abc import Sequence

from fedcompress.merging import site_weights
from fedcompress.merging.weights import Given, Weighting
from fedcompress.wire import Header

LOSS = "train_loss"  # metric of an update


def weights_of(policy: Weighting, headers: Sequence[Header]) -> list[float]:
    """Weights of updates; all were trained from the published version, so that none is stale.

    Raises:
        ConfigError: a header lacks the loss, or its site is not in the list, and the policy needs it.
    """
    listed = policy.table if isinstance(policy, Given) else {}
    return site_weights(
        policy,
        examples=[h.examples for h in headers],
        losses=[h.metrics.get(LOSS) for h in headers],
        given=[listed.get(h.site) for h in headers],
    )
