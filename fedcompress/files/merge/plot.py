"""The report as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcompress.errors import MissingPackageError

MAX_BARS = 60  # modules that are shown, those of the largest error


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Cosines of sites, error by module, norms and contributions by site, as a PNG.

    Raises:
        MissingPackageError: matplotlib is absent.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("matplotlib is missing: pip install 'fedcompress[report]'") from error
    names = [Path(s["path"]).name for s in report["sites"]]
    figure = Figure(figsize=(13, 9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    figure.suptitle(f"{report['rule']} of {len(names)} {report['peft_type']} adapters")
    _cosines(figure, axes[0][0], report.get("cosines"), names)
    _errors(axes[0][1], report["modules"])
    for axis, key, title in (
        (axes[1][0], "site_norms", "norm of each site's change"),
        (axes[1][1], "contribution", "contribution to the mean"),
    ):
        axis.set_title(title)
        if key in report:
            axis.bar(range(len(names)), report[key], color="#3b6ea5")
            _ticks(axis.set_xticks, names)
            axis.axhline(0, color="black", linewidth=0.6)
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(part, format="png", dpi=120)
    part.replace(path)


def _ticks(setter: Any, names: list[str]) -> None:
    if len(names) <= 40:
        setter(range(len(names)), names, rotation=45, ha="right")


def _cosines(figure: Any, axis: Any, values: Any, names: list[str]) -> None:
    axis.set_title("cosine of the sites' changes")
    if values is None:
        axis.text(0.5, 0.5, "left out: too many sites", ha="center")
        return
    shown = axis.imshow(values, vmin=-1, vmax=1, cmap="RdBu_r")
    figure.colorbar(shown, ax=axis)
    _ticks(axis.set_xticks, names)
    if len(names) <= 40:
        axis.set_yticks(range(len(names)), names)
    if len(names) <= 12:
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                axis.text(j, i, f"{value:.2f}", ha="center", va="center", color="w" if abs(value) > 0.6 else "k")


def _errors(axis: Any, modules: list[dict[str, Any]]) -> None:
    worst = sorted(modules, key=lambda m: m["merge_error"] or 0.0, reverse=True)[:MAX_BARS]
    axis.set_title("error by module, relative to the mean product")
    for key, color, height in (("merge_error", "#b5443a", 0.8), ("truncation_error", "#e0a458", 0.4)):
        axis.barh(range(len(worst)), [m[key] or 0.0 for m in worst], height=height, color=color, label=key)
    axis.invert_yaxis()
    if worst:
        axis.legend(loc="lower right")
    if len(worst) <= MAX_BARS // 2:
        axis.set_yticks(range(len(worst)), [".".join(m["name"].split(".")[-4:]) for m in worst], fontsize=7)
    else:
        axis.set_yticks([])
