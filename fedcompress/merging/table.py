"""The one literal table of merge rules is here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedcompress.merging.lora_rules.als import LoraAls
from fedcompress.merging.lora_rules.fedit import FedIT
from fedcompress.merging.lora_rules.ffa_lora import FFA
from fedcompress.merging.lora_rules.lora_fair import LoraFair
from fedcompress.merging.lora_rules.procrustes import LoraProcrustes
from fedcompress.merging.lora_rules.ridge import LoraRidge
from fedcompress.merging.lora_rules.rolora import RoLoRA
from fedcompress.merging.lora_rules.svd import LoraSvd
from fedcompress.merging.rules.breadcrumbs import Breadcrumbs
from fedcompress.merging.rules.bulyan import Bulyan
from fedcompress.merging.rules.clip import Clip
from fedcompress.merging.rules.dare import Dare
from fedcompress.merging.rules.dare_ties import DareTies
from fedcompress.merging.rules.darex_q import DarexQ
from fedcompress.merging.rules.della import Della
from fedcompress.merging.rules.disjoint_mean import DisjointMean
from fedcompress.merging.rules.geometric_median import GeometricMedian
from fedcompress.merging.rules.krum import Krum
from fedcompress.merging.rules.magnitude_prune import MagnitudePrune
from fedcompress.merging.rules.mean import Mean
from fedcompress.merging.rules.median import Median
from fedcompress.merging.rules.multi_krum import MultiKrum
from fedcompress.merging.rules.pcb import Pcb
from fedcompress.merging.rules.pcb_paper import PcbPaper
from fedcompress.merging.rules.sparse_mean import SparseMean
from fedcompress.merging.rules.task_arithmetic import TaskArithmetic
from fedcompress.merging.rules.ties import Ties
from fedcompress.merging.rules.trimmed_mean import TrimmedMean
from fedcompress.merging.rules.wise_ft import WiseFt

# Classes of memory, beside the published state and the result.
SMALL = "constant: blocks of all sites"
GRAM = "sites x sites numbers, then blocks of all sites"
ONE_TENSOR = "one tensor of one site, then blocks of all sites"
FACTORS = "factors of one module from all sites"
LEVELS = "one tensor of one site, then blocks of all sites, and 4 kB for each tensor of each site"
SCORES = "blocks of all sites, and 0.5 MB for each site"


@dataclass(frozen=True, kw_only=True)
class RuleRow:
    """A row describes one merge rule.

    ``after_sparse`` gives the measured accuracy of the updates of 8 sites that are merged once, exact and as sparse
    ternary with 5 % of the entries; ``mean`` makes .676 and .543 of the same updates (``docs/results.md``).
    """

    config: type[Any]  # the rule's class
    law: str  # its formula
    memory: str  # what is held beside the published state and the result
    paper: str  # where it is from
    identity: str  # a call for which one update with weight 1, and equal updates, are returned; empty if there is none
    kind: str = "elementwise"  # or lora
    after_sparse: str = ""  # what happens to updates whose entries are mostly 0, where that is bad


# Forms that `fedcompress merge` has for folders, but a round cannot have, with the reason.
FOLDERS_ONLY: dict[str, str] = {
    "exact": "is for `fedcompress merge`: the rank grows with the sites; in rounds use lora-svd",
    "fedex": "is for `fedcompress merge`: its residual adds to the rank, which is fixed in a run; use lora-ridge",
    "flora": "is for `fedcompress merge`: stacking adds up the ranks, and a run's rank is fixed; use lora-svd",
}

RULES: dict[str, RuleRow] = {
    "breadcrumbs": RuleRow(
        config=Breadcrumbs,
        law="drop the smallest beta and the largest gamma of each site; scale * sum w delta",
        memory=ONE_TENSOR,
        identity="breadcrumbs(beta=0,gamma=0)",
        paper="Davari and Belilovsky 2023 (arXiv:2312.06795)",
    ),
    "bulyan": RuleRow(
        config=Bulyan,
        law="select n - 2 malicious updates by krum; mean of the n - 4 malicious values next to each entry's median",
        memory=GRAM,
        identity="bulyan",
        paper="El Mhamdi et al. 2018 (arXiv:1802.07927)",
    ),
    "clip": RuleRow(
        config=Clip,
        law="mean of updates scaled to at most a norm; norm=0: the median norm of the cohort",
        memory=SMALL,
        identity="clip",
        paper="Sun et al. 2019 (arXiv:1911.07963)",
    ),
    "dare": RuleRow(
        config=Dare,
        law="keep with probability density, by seed; sum w delta / (q or density)",
        memory=SMALL,
        identity="dare(density=1)",
        paper="Yu et al. 2024 (arXiv:2311.03099)",
        after_sparse="drops what a codec has left: accuracy .180, and .050 after sparse ternary",
    ),
    "dare-ties": RuleRow(
        config=DareTies,
        law="keep with probability density, by seed; elect a sign, mean of what agrees / density",
        memory=SMALL,
        identity="dare-ties(density=1)",
        paper="Yu et al. 2024 (arXiv:2311.03099) with Yadav et al. 2023 (arXiv:2306.01708)",
        after_sparse="drops what a codec has left: accuracy .003, and .031 after sparse ternary",
    ),
    "darex-q": RuleRow(
        config=DarexQ,
        law="keep with probability density, by seed; sum w delta / q, q at least the density",
        memory=SMALL,
        identity="darex-q(density=1,q=1)",
        paper="Deng et al. 2025 (arXiv:2410.09344)",
        after_sparse="drops what a codec has left: accuracy .170, and .048 after sparse ternary",
    ),
    "della": RuleRow(
        config=Della,
        law="keep with a probability that grows with the rank, by seed, and divide by it; then ties without trim",
        memory=LEVELS,
        identity="della(density=1,epsilon=0)",
        paper="Deep et al. 2024 (arXiv:2406.11617)",
        after_sparse="drops what a codec has left, as dare-ties does, and has not been measured",
    ),
    "disjoint-mean": RuleRow(
        config=DisjointMean,
        law="sum w delta / weight of the sites that sent the entry",
        memory=SMALL,
        identity="disjoint-mean",
        paper="SparseLoCo, Sarfi et al. 2025 (arXiv:2508.15706)",
        after_sparse="who alone sent an entry speaks for all: accuracy .676, and .443 after sparse ternary",
    ),
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
    "magnitude-prune": RuleRow(
        config=MagnitudePrune,
        law="trim to density; sum w delta",
        memory=ONE_TENSOR,
        identity="magnitude-prune(density=1)",
        paper="the trim of Yadav et al. 2023 (arXiv:2306.01708), as in peft",
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
        after_sparse="most entries have no majority, and become 0: accuracy .631, and .018 after sparse ternary",
    ),
    "multi-krum": RuleRow(
        config=MultiKrum,
        law="mean of the kept updates with the best scores of krum; kept=0: n - malicious",
        memory=GRAM,
        identity="multi-krum(malicious=0)",
        paper="Blanchard et al. 2017 (arXiv:1703.02757)",
    ),
    "pcb": RuleRow(
        config=Pcb,
        law="mean by s = exp(n Norm(|delta|)^2) tanh(delta sum delta), the highest ratio of it, moved to [0, 1]",
        memory=f"{ONE_TENSOR}, and 0.5 MB for each site",
        identity="",
        paper="the released code of Du et al. 2024 (arXiv:2410.02396)",
        after_sparse="one magnitude tells it nothing: accuracy .685, and .450 after sparse ternary",
    ),
    "pcb-paper": RuleRow(
        config=PcbPaper,
        law="mean by s = Softmax(n Norm(delta^2)) sum_j Softmax(Norm(delta delta_j)), the highest ratio of it",
        memory=SCORES,
        identity="pcb-paper(ratio=1)",
        paper="Du et al. 2024 (arXiv:2410.02396)",
        after_sparse="one magnitude tells it nothing: accuracy .518, and .446 after sparse ternary",
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
    "sparse-mean": RuleRow(
        config=SparseMean,
        law="sum w delta / (1 - lambda + lambda * weight of the sites that sent the entry)",
        memory=SMALL,
        identity="sparse-mean",
        paper="Trotter and Tukey's normalization, Khan and Ugander 2023 (arXiv:2106.07695)",
    ),
    "task-arithmetic": RuleRow(
        config=TaskArithmetic,
        law="scale * sum w delta; the paper's lambda is scale / n",
        memory=SMALL,
        identity="task-arithmetic",
        paper="Ilharco et al. 2023 (arXiv:2212.04089)",
    ),
    "ties": RuleRow(
        config=Ties,
        law="trim to density, elect a sign, mean of what agrees; a tie gives 0",
        memory=ONE_TENSOR,
        identity="ties(density=1)",
        paper="Yadav et al. 2023 (arXiv:2306.01708)",
        after_sparse="one magnitude cannot be trimmed: accuracy .516, and .451 after sparse ternary",
    ),
    "trimmed-mean": RuleRow(
        config=TrimmedMean,
        law="mean without the share beta of the weight at both ends, entry by entry",
        memory=SMALL,
        identity="trimmed-mean",
        paper="Yin et al. 2018 (arXiv:1803.01498)",
        after_sparse="trims the few that sent an entry: accuracy .588, and .283 after sparse ternary",
    ),
    "wise-ft": RuleRow(
        config=WiseFt,
        law="alpha * sum w delta",
        memory=SMALL,
        identity="wise-ft(alpha=1)",
        paper="Wortsman et al. 2022 (arXiv:2109.01903); BANG, Lin et al. 2024 (arXiv:2309.17230)",
    ),
}
