"""The one literal table of merge rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedcompress.merging.fedit import FedIT
from fedcompress.merging.ffa import FFA
from fedcompress.merging.lora_als import LoraAls
from fedcompress.merging.lora_fair import LoraFair
from fedcompress.merging.lora_procrustes import LoraProcrustes
from fedcompress.merging.lora_ridge import LoraRidge
from fedcompress.merging.lora_svd import LoraSvd
from fedcompress.merging.mean import Mean
from fedcompress.merging.rolora import RoLoRA
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


# Forms that `fedcompress merge` has for folders, but a round cannot have.
FOLDERS_ONLY: dict[str, str] = {
    "exact": "is for `fedcompress merge`: the rank grows with the sites; in rounds use lora-svd",
    "fedex": "is for `fedcompress merge`: its residual adds to the rank, which is fixed in a run; use lora-ridge",
    "flora": "is for `fedcompress merge`: stacking adds up the ranks, and a run's rank is fixed; use lora-svd",
}

RULES: dict[str, RuleRow] = {
    "fedit": RuleRow(
        config=FedIT,
        law="mean A, mean B: the baseline, not mean(BA); weighted mean elsewhere",
        memory=FACTORS,
        identity="fedit",
        kind="lora",
        paper="FedIT, Zhang et al. 2023 (arXiv:2305.05644)",
    ),
    "ffa": RuleRow(
        config=FFA,
        law="A as published, mean B: exact if sites freeze A; weighted mean elsewhere",
        memory=FACTORS,
        identity="",
        kind="lora",
        paper="FFA-LoRA, Sun et al. 2024 (arXiv:2403.12313)",
    ),
    "lora-als": RuleRow(
        config=LoraAls,
        law="least squares for sum w B A, B and A in turns from the means, held to them; weighted mean elsewhere",
        memory=FACTORS,
        identity="lora-als",
        kind="lora",
        paper="ours; alternating least squares with a proximal term",
    ),
    "lora-fair": RuleRow(
        config=LoraFair,
        law="mean A; mean B with the least squares correction to sum w B A, penalised; weighted mean elsewhere",
        memory=FACTORS,
        identity="lora-fair",
        kind="lora",
        paper="LoRA-FAIR, Bian et al. 2024 (arXiv:2411.14961)",
    ),
    "lora-procrustes": RuleRow(
        config=LoraProcrustes,
        law="singular value factors of sum w B A, turned towards the published A; weighted mean elsewhere",
        memory=FACTORS,
        identity="",
        kind="lora",
        paper="ours; orthogonal Procrustes (Schönemann 1966)",
    ),
    "lora-ridge": RuleRow(
        config=LoraRidge,
        law="mean A; B = ridge least squares of sum w B A on it; weighted mean elsewhere",
        memory=FACTORS,
        identity="lora-ridge",
        kind="lora",
        paper="ours; in the gauge of the published state (LoRA-FAIR, arXiv:2411.14961, is near)",
    ),
    "lora-svd": RuleRow(
        config=LoraSvd,
        law="singular value factors of sum w B A: least error of the rank, in a gauge of their own; "
        "weighted mean elsewhere",
        memory=FACTORS,
        identity="",
        kind="lora",
        paper="as FlexLoRA, Bai et al. 2024 (arXiv:2402.11505)",
    ),
    "mean": RuleRow(
        config=Mean,
        law="sum w delta; on LoRA factors mean(B) mean(A), not mean(BA)",
        memory=SMALL,
        identity="mean",
        paper="McMahan et al. 2017 (arXiv:1602.05629); FedIT (arXiv:2305.05644) on LoRA",
    ),
    "rolora": RuleRow(
        config=RoLoRA,
        law="odd rounds mean B, even rounds mean A, the other as published: exact if sites train only that one; "
        "weighted mean elsewhere",
        memory=FACTORS,
        identity="",
        kind="lora",
        paper="RoLoRA, Chen et al. 2024 (arXiv:2409.02346)",
    ),
    "ties": RuleRow(
        config=Ties,
        law="trim to density, elect a sign, mean of what agrees; a tie gives 0",
        memory=ONE_TENSOR,
        identity="ties(density=1)",
        paper="Yadav et al. 2023 (arXiv:2306.01708)",
    ),
}
