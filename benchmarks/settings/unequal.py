"""Three sites of unequal size and class: 18 classes, six of them at one small site alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.settings.banking import labelled_rows as banking_rows
from benchmarks.settings.base import Setting
from benchmarks.settings.clinc import domain_intents, labelled_rows
from benchmarks.settings.texts import Texts, classification

CLASSES = 18
SHARED = 12  # classes that the two large sites share, four to one or one to four
OF_SMALL = 200  # rows of each of the small site's own classes
OF_LARGE = 3900  # rows of a large site, at most
HELD_OUT = 0.15
SPLITS = ("domains", "random", "banking")
Rows = Sequence[tuple[str, int]]


def _rows(split: str) -> Rows:
    """Return texts with their classes.

    Args:
        split: ``domains``: halves of CLINC150's domains; ``random``: 8 random intents of it a class; ``banking``: four
            neighbours by name of BANKING77's intents a class.
    """
    if split == "banking":
        found = banking_rows()
        names = sorted({intent for _, intent in found})
        groups = [names[4 * k : 4 * k + 4] for k in range(CLASSES)]
    else:
        found = [row for part in ("train", "val", "test") for row in labelled_rows(part)]
        halves = [part for intents in domain_intents() for part in (intents[:7], intents[7:])]
        drawn = np.random.default_rng(7).permutation(sorted(i for part in halves for i in part)).tolist()
        groups = halves[:CLASSES] if split == "domains" else [drawn[8 * k : 8 * k + 8] for k in range(CLASSES)]
    class_of = {intent: number for number, group in enumerate(groups) for intent in group}
    return [(text, class_of[intent]) for text, intent in found if intent in class_of]


def _share_out(labels: Sequence[int]) -> list[list[int]]:
    """Return the rows of each site, the small one last."""
    draw = np.random.default_rng(3)
    sites: list[list[int]] = [[], [], []]
    for label in range(CLASSES):
        rows = draw.permutation(np.flatnonzero(np.array(labels) == label)).tolist()
        if label >= SHARED:
            sites[2] += rows[:OF_SMALL]
            continue
        cut = int(len(rows) * (0.8 if label % 2 else 0.2))
        sites[0] += rows[:cut]
        sites[1] += rows[cut:]
    return [draw.permutation(site)[:OF_LARGE].tolist() for site in sites]


def unequal(split: str, site: int | None = None) -> tuple[Setting, list[list[float]]]:
    """Build the setting, or that of one of its sites alone.

    Args:
        split: one of ``SPLITS``.
        site: trains alone, on its own rows; None for all.

    Returns:
        The setting, whose metric is the accuracy on the held-out rows of all its sites, and a list to which each
        evaluation adds the accuracies of the sites.
    """
    rows = _rows(split)
    texts = Texts(*zip(*rows, strict=True))
    shares = _share_out([label for _, label in rows])
    shares = shares if site is None else [shares[site]]
    cuts = [int(len(share) * (1 - HELD_OUT)) for share in shares]
    held = [share[cut:] for share, cut in zip(shares, cuts, strict=True)]
    train = [share[:cut] for share, cut in zip(shares, cuts, strict=True)]
    by_site: list[list[float]] = []
    setting = classification(
        f"unequal {split}", texts, texts, train, classes=CLASSES, steps=40, held_out=held, on_accuracies=by_site.append
    )
    return setting, by_site
