"""The one literal table of merge rules that need more than updates is here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedcompress.merging.data_driven.expert import expert
from fedcompress.merging.data_driven.fisher import fisher
from fedcompress.merging.data_driven.regmean import regmean
from fedcompress.merging.data_driven.widen import widen


@dataclass(frozen=True, kw_only=True)
class DataRow:
    """A row describes one rule: a function to call, since what it needs is in no message of a round."""

    call: Callable[..., object]  # the function
    law: str  # its formula
    needs: str  # what it takes beside the updates
    memory: str  # what is held beside inputs and result
    paper: str  # where it is from
    kind: str = "data"


DATA_RULES: dict[str, DataRow] = {
    "expert": DataRow(
        call=expert,
        law="sum c_im B_i A_i; coefficients learned to align hidden states and logits with each site's own model",
        needs="the model, and a few unlabelled batches of each site",
        memory="the model once, all adapters, activations of one batch",
        paper="Zhang et al. 2025 (arXiv:2509.25712)",
    ),
    "fisher": DataRow(
        call=fisher,
        law="sum w F delta / sum w F, entry by entry; the weighted mean where every F is 0",
        needs="each site's diagonal Fisher, of the size of its update",
        memory="constant: blocks of all sites",
        paper="Matena & Raffel 2022 (arXiv:2111.09832)",
    ),
    "regmean": DataRow(
        call=regmean,
        law="(sum w dW G) (sum w G)^-1 for each linear module; B refitted to it on mean A for LoRA",
        needs="each site's Gram matrix of each module's inputs: columns^2 numbers",
        memory="Gram matrices and factors of one module from all sites",
        paper="Jin et al. 2023 (arXiv:2212.09849)",
    ),
    "widen": DataRow(
        call=widen,
        law="sum c_i delta_i; c of a column from the ranks of how far its length and its direction moved",
        needs="the dense weights that all sites started from",
        memory="one tensor of one site; of LoRA modules 256 dense columns",
        paper="Yu et al. 2024 (arXiv:2408.03092)",
    ),
}
