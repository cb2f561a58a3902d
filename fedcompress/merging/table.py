"""The one literal table of merge rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedcompress.merging.lora_ridge import LoraRidge
from fedcompress.merging.mean import Mean
from fedcompress.merging.ties import Ties

SMALL = "constant: blocks of all sites"
ONE_TENSOR = "one tensor of one site, then blocks of all sites"
FACTORS = "factors of one module from all sites"


@dataclass(frozen=True, kw_only=True)
class RuleRow:
    """One merge rule.

    ``kind`` is ``elementwise`` or ``lora``; ``memory`` is what is held beside the published state
    and the result. With the call ``identity`` one update with weight 1 returns itself, and equal
    updates return their value; empty where no parameters promise that.
    """

    config: type[Any]
    law: str
    memory: str
    paper: str
    identity: str
    kind: str = "elementwise"


RULES: dict[str, RuleRow] = {
    "lora-ridge": RuleRow(
        config=LoraRidge,
        law="mean A; B = ridge least squares of sum w B A on it; weighted mean elsewhere",
        memory=FACTORS,
        identity="lora-ridge",
        kind="lora",
        paper="ours; in the gauge of the published state (LoRA-FAIR, arXiv:2411.14961, is near)",
    ),
    "mean": RuleRow(
        config=Mean,
        law="sum w delta; on LoRA factors mean(B) mean(A), not mean(BA)",
        memory=SMALL,
        identity="mean",
        paper="McMahan et al. 2017 (arXiv:1602.05629); FedIT (arXiv:2305.05644) on LoRA",
    ),
    "ties": RuleRow(
        config=Ties,
        law="trim to density, elect a sign, mean of what agrees; a tie gives 0",
        memory=ONE_TENSOR,
        identity="ties(density=1)",
        paper="Yadav et al. 2023 (arXiv:2306.01708)",
    ),
}
