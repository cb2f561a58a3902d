"""A picture of accuracy against bytes shows what a run cost, and where uncompressed averaging would stand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcompress.errors import MissingPackageError


def plot_accuracy_against_bytes(result: Mapping[str, Any], path: Path) -> None:
    """Write a PNG from the fields of a ``result.json``.

    The line is measured: accuracy after each round against payload bytes so far, both ways. The two marks stand at the
    exact bytes of bf16 and fp32 averaging of the same adapter in the same number of messages, at this run's final
    accuracy.

    Raises:
        MissingPackageError: matplotlib is absent.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("report: matplotlib is absent: pip install 'fedcompress[report]'") from error

    rounds = result["rounds"]
    spent = 0  # bytes so far
    megabytes = []
    accuracies = []
    for row in rounds:
        spent += row["uplink_bytes"] + row["downlink_bytes"]
        megabytes.append(spent / 1e6)
        accuracies.append(row["accuracy"])
    figure = Figure(figsize=(7, 4.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(megabytes, accuracies, marker="o", color="#1f77b4", label=f"measured, by round: {result['codec']}")
    for x, y, row in zip(megabytes, accuracies, rounds, strict=True):
        axes.annotate(str(row["round"]), (x, y), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
    axes.axhline(result["accuracy_start"], color="#999999", linewidth=0.8, linestyle=":", label="before training")
    for dtype, marker, color in (("bf16", "s", "#d62728"), ("fp32", "^", "#9467bd")):
        total = sum(result["baseline_bytes"][dtype].values())
        ratio = total / max(sum(result["payload_bytes"].values()), 1)
        label = f"{dtype} FedAvg: exact bytes ({ratio:.0f} x), this run's accuracy"
        axes.plot([total / 1e6], [result["accuracy_end"]], marker, color=color, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("payload over all sites, both ways, MB (10^6 bytes)")
    axes.set_ylabel("held-out accuracy")
    axes.set_title(f"{result['task']}: {result['sites']} sites, seed {result['seed']}", fontsize=10)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, metadata={"Software": None})
