"""Does it train? Three seeds of three settings: uncompressed, sparse ternary, transform."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.codec.runs import Cell, run, setting_of
from benchmarks.common import row
from benchmarks.federation import DOWN_ENVELOPE, UP_ENVELOPE

SEEDS = (0, 1, 2)
TERNARY = ("topk(density=0.05)|ternary", "topk(density=0.1)|ternary")
M_CODES = ("transform(budget=0.129,head=30)", "transform(budget=0.269,head=30)")
ROUNDS = {"M": 8, "L": 10, "S": 5}


def rows(out: Path) -> list[dict[str, Any]]:
    """Setting M by accuracy; L and S by the share of ternary's distance that is left at no more bytes."""
    found = _setting_m(out)
    for name in ("L", "S"):
        found += _language(name, out)
    return found


def _setting_m(out: Path) -> list[dict[str, Any]]:
    found, gaps = [], []
    for seed in SEEDS:
        plain = run(Cell(setting="M", rounds=8, up="none", down="none", seed=seed), out).metrics[-1]
        ours = run(Cell(setting="M", rounds=8, up=M_CODES[0], down=M_CODES[1], seed=seed), out)
        gaps.append(plain - ours.metrics[-1])
        note = f"accuracy {ours.metrics[-1]:.4f}, uncompressed {plain:.4f}"
        found.append(
            row(f"M seed {seed}: gap", gaps[-1], "", target="<= 0.02", note=note, **{"pass": gaps[-1] <= 0.02})
        )
        for way, ratio, least in (("up", ours.up_ratio, 100), ("down", ours.down_ratio, 55)):
            found.append(
                row(f"M seed {seed}: bytes {way}", ratio, "x", target=f">= {least}", **{"pass": ratio >= least})
            )
    found.append(row("M: mean gap", mean(gaps), "", target="<= 0.02", spread=gaps, **{"pass": mean(gaps) <= 0.02}))
    return found


def _language(name: str, out: Path) -> list[dict[str, Any]]:
    found, shares = [], []
    for seed in SEEDS:
        cell = {"setting": name, "rounds": ROUNDS[name], "seed": seed}
        plain = run(Cell(**cell, up="none", down="none"), out)
        ternary = run(Cell(**cell, up=TERNARY[0], down=TERNARY[1]), out)
        numel = setting_of(name).layout.numel
        up = 16 / ternary.up_ratio - 8 * UP_ENVELOPE / numel
        down = 16 / ternary.down_ratio - 8 * DOWN_ENVELOPE / numel
        ours = run(Cell(**cell, up=f"transform(budget={up:.4f})", down=f"transform(budget={down:.4f})"), out)
        far, near = (r.metrics[-1] - plain.metrics[-1] for r in (ternary, ours))
        shares.append(near / far)
        note = (
            f"loss {plain.metrics[-1]:.4f} none, {ternary.metrics[-1]:.4f} ternary, {ours.metrics[-1]:.4f} transform; "
        )
        note += f"bytes {ours.up_bytes / ternary.up_bytes:.3f} up, {ours.down_bytes / ternary.down_bytes:.3f} down"
        found.append(row(f"{name} seed {seed}: share of ternary's distance", shares[-1], "", note=note))
    value = mean(shares)
    found.append(row(f"{name}: mean share", value, "", target="<= 0.5", spread=shares, **{"pass": value <= 0.5}))
    return found
