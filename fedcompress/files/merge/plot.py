"""The report of a merge is drawn as a picture here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcompress.errors import MissingPackageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_BARS = 60  # modules that are shown: those of the largest error
MAX_LABELS = 40  # sites up to which each has its name at an axis
MAX_NUMBERS = 12  # sites up to which each cosine is written as a number


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draw cosines of sites, error by module, norms and contributions by site, as a PNG.

    Args:
        report: what ``merge_adapters`` has returned.
        path: the file to write; its folder is made if it is missing.

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
    _draw_cosines(figure, axes[0][0], report.get("cosines"), names)
    _draw_errors(axes[0][1], report["modules"])
    for axis, key, title in (
        (axes[1][0], "site_norms", "norm of each site's change"),
        (axes[1][1], "contribution", "contribution to the mean"),
    ):
        axis.set_title(title)
        if key in report:
            axis.bar(range(len(names)), report[key], color="#3b6ea5")
            _label_sites(axis.set_xticks, names)
            axis.axhline(0, color="black", linewidth=0.6)
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(part, format="png", dpi=120)
    part.replace(path)


def _label_sites(setter: Callable[..., object], names: list[str]) -> None:
    if len(names) <= MAX_LABELS:
        setter(range(len(names)), names, rotation=45, ha="right")


def _draw_cosines(figure: Figure, axis: Axes, values: list[list[float]] | None, names: list[str]) -> None:
    axis.set_title("cosine of the sites' changes")
    if values is None:
        axis.text(0.5, 0.5, "left out: too many sites, or DoRA", ha="center")
        return
    image = axis.imshow(values, vmin=-1, vmax=1, cmap="RdBu_r")
    figure.colorbar(image, ax=axis)
    _label_sites(axis.set_xticks, names)
    if len(names) <= MAX_LABELS:
        axis.set_yticks(range(len(names)), names)
    if len(names) <= MAX_NUMBERS:
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                color = "w" if abs(value) > 0.6 else "k"  # white on dark squares
                axis.text(j, i, f"{value:.2f}", ha="center", va="center", color=color)


def _draw_errors(axis: Axes, modules: list[dict[str, Any]]) -> None:
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
