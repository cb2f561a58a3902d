"""The one literal table of merge rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedcompress.merging.clip import Clip
from fedcompress.merging.geometric_median import GeometricMedian
from fedcompress.merging.krum import Krum
from fedcompress.merging.lora_ridge import LoraRidge
from fedcompress.merging.mean import Mean
from fedcompress.merging.median import Median
from fedcompress.merging.multi_krum import MultiKrum
from fedcompress.merging.ties import Ties
from fedcompress.merging.trimmed_mean import TrimmedMean

SMALL = "constant: blocks of all sites"
GRAM = "sites x sites numbers, then blocks of all sites"
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
    "clip": RuleRow(
        config=Clip,
        law="mean of updates scaled to at most a norm; norm=0: the median norm of the cohort",
        memory=SMALL,
        identity="clip",
        paper="Sun et al. 2019 (arXiv:1911.07963)",
    ),
    "geometric-median": RuleRow(
        config=GeometricMedian,
        law="least weighted sum of distances to whole updates, by smoothed Weiszfeld steps",
        memory=GRAM,
        identity="geometric-median",
        paper="RFA, Pillutla et al. 2022 (arXiv:1912.13445)",
    ),
    "krum": RuleRow(
        config=Krum,
        law="the update closest to its n - malicious - 2 neighbours; n >= 2 * malicious + 3",
        memory=GRAM,
        identity="krum(malicious=0)",
        paper="Blanchard et al. 2017 (arXiv:1703.02757)",
    ),
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
    "median": RuleRow(
        config=Median,
        law="weighted median, entry by entry",
        memory=SMALL,
        identity="median",
        paper="Yin et al. 2018 (arXiv:1803.01498)",
    ),
    "multi-krum": RuleRow(
        config=MultiKrum,
        law="mean of the kept updates with the best scores of krum; kept=0: n - malicious",
        memory=GRAM,
        identity="multi-krum(malicious=0)",
        paper="Blanchard et al. 2017 (arXiv:1703.02757)",
    ),
    "ties": RuleRow(
        config=Ties,
        law="trim to density, elect a sign, mean of what agrees; a tie gives 0",
        memory=ONE_TENSOR,
        identity="ties(density=1)",
        paper="Yadav et al. 2023 (arXiv:2306.01708)",
    ),
    "trimmed-mean": RuleRow(
        config=TrimmedMean,
        law="mean without the share beta of the weight at both ends, entry by entry",
        memory=SMALL,
        identity="trimmed-mean",
        paper="Yin et al. 2018 (arXiv:1803.01498)",
    ),
}
