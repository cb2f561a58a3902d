"""The one literal table of merge rules."""

from __future__ import annotations

from dataclasses import dataclass

from fedcompress.merging.base import Rule
from fedcompress.merging.lora_ridge import LoraRidge
from fedcompress.merging.mean import Mean


@dataclass(frozen=True, kw_only=True)
class RuleRow:
    """One merge rule. ``identity``: one update with weight 1 returns itself."""

    config: type[Rule]
    law: str
    memory: str
    identity: bool
    paper: str


RULES: dict[str, RuleRow] = {
    "lora-ridge": RuleRow(
        config=LoraRidge,
        law="mean A; B = ridge least squares of sum w B A on it; weighted mean elsewhere",
        memory="O(sites) for the factors of one module",
        identity=True,
        paper="ours; in the gauge of the published state (LoRA-FAIR, arXiv:2411.14961, is near)",
    ),
    "mean": RuleRow(
        config=Mean,
        law="sum w delta; on LoRA factors mean(B) mean(A), not mean(BA)",
        memory="O(1) in the number of sites",
        identity=True,
        paper="McMahan et al. 2017 (arXiv:1602.05629); FedIT (arXiv:2305.05644) on LoRA",
    ),
}
