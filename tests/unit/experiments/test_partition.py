"""Sharing rows among sites: every row once, repeatable, and as skewed as asked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress.errors import ConfigError
from fedcompress.experiments.partition import HOWS, Partition, partition

SCRIPT = Path(sys.executable).parent / "fedcompress"


def classes(count: int, names: int = 4) -> list[int]:
    return np.random.default_rng(0).integers(names, size=count).tolist()


def distance(shares: list[list[int]], keys: list[int]) -> float:
    """Mean total variation between a site's classes and all classes."""
    everyone = np.bincount(keys) / len(keys)
    apart = []
    for share in shares:
        own = np.bincount([keys[row] for row in share], minlength=len(everyone)) / max(1, len(share))
        apart.append(float(abs(own - everyone).sum() / 2))
    return sum(apart) / len(apart)


@settings(max_examples=60, deadline=None)
@given(
    how=st.sampled_from(["iid", "dirichlet", "quantity"]),
    sites=st.integers(1, 9),
    extra=st.integers(0, 200),
    least=st.integers(0, 4),
    alpha=st.sampled_from([1e-6, 0.01, 0.3, 1.0, 1e4]),
    seed=st.integers(0, 1 << 64),
)
def test_every_row_is_at_one_site(how: str, sites: int, extra: int, least: int, alpha: float, seed: int) -> None:
    count = sites * least + extra
    rule = Partition(sites=sites, how=how, alpha=alpha, least=least, seed=seed)
    shares = partition(count, rule, classes(count))
    assert sorted(row for share in shares for row in share) == list(range(count))
    assert len(shares) == sites
    assert min(len(share) for share in shares) >= least
    assert all(share == sorted(share) for share in shares)
    assert shares == partition(count, rule, classes(count))


def test_another_seed_is_another_share() -> None:
    for how in ("iid", "dirichlet", "quantity"):
        one, other = (partition(200, Partition(sites=3, how=how, seed=s), classes(200)) for s in (0, 1))
        assert one != other


def test_a_large_alpha_tends_to_iid() -> None:
    keys = classes(8000)
    apart = {
        alpha: distance(partition(8000, Partition(sites=8, how="dirichlet", alpha=alpha), keys), keys)
        for alpha in (0.1, 1.0, 10.0, 1e6)
    }
    assert apart[0.1] > apart[1.0] > apart[10.0] > apart[1e6]
    assert apart[0.1] > 0.4
    assert apart[1e6] < 0.005
    sizes = [len(s) for s in partition(8000, Partition(sites=8, how="quantity", alpha=1e6), keys)]
    assert max(sizes) - min(sizes) < 40


def test_classes_are_drawn_apart() -> None:
    """The shares of one class say nothing of those of another."""
    keys = [0] * 1000 + [1] * 1000
    shares = partition(2000, Partition(sites=4, how="dirichlet", alpha=0.3, seed=3), keys)
    first, second = ([sum(keys[row] == k for row in share) for share in shares] for k in (0, 1))
    assert first != second
    assert sum(first) == sum(second) == 1000


def test_a_key_stays_together_and_sizes_are_levelled() -> None:
    keys = ["a"] * 50 + ["b"] * 30 + ["c"] * 25 + ["d"] * 5
    shares = partition(110, Partition(sites=2, how="key"), keys)
    assert [sorted({keys[row] for row in share}) for share in shares] == [["a", "d"], ["b", "c"]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sites": 0}, "sites: 0: must be at least 1"),
        ({"how": "zipf"}, "how: zipf: must be one of"),
        ({"alpha": 0.0}, "alpha: 0.0: must be above 0"),
        ({"alpha": float("nan")}, "alpha: nan: must be above 0"),
        ({"least": -1}, "least: -1: must be at least 0"),
        ({"least": 6}, "rows: 10: must be at least 12, 6 for each site"),
        ({"how": "key", "sites": 3}, "keys: 2 distinct: must give each of 3 sites 1 rows"),
    ],
)
def test_mistakes(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        partition(10, Partition(**{"sites": 2, **options}), ["a", "b"] * 5)


@pytest.mark.parametrize("how", ["key", "dirichlet"])
def test_keys_that_are_wanted(how: str) -> None:
    assert how in HOWS
    with pytest.raises(ConfigError, match="keys: none: must be one for each of 10 rows"):
        partition(10, Partition(sites=2, how=how))


def call(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, "partition", *map(str, args)], capture_output=True, text=True, check=False)


def test_the_command(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"row {i} \u00e9", "label": "ab"[i % 2]}, ensure_ascii=i % 3 > 0) for i in range(90)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    done = call(tmp_path / "in.jsonl", "--sites", 3, "--by", "label", "--alpha", 0.3, "-o", tmp_path / "out", "--json")
    facts = json.loads(done.stdout)
    written = [(tmp_path / "out" / f"site-{i}" / "train.jsonl").read_text("utf-8").splitlines() for i in (1, 2, 3)]
    assert sorted(line for part in written for line in part) == sorted(lines), "as they were, byte for byte"
    assert facts["how"] == "dirichlet"
    for part, fact in zip(written, facts["sites"], strict=True):
        assert fact["rows"] == len(part)
        assert fact["classes"] == Counter(json.loads(line)["label"] for line in part)
    shown = call(tmp_path / "in.jsonl", "--by", "label", "-o", tmp_path / "two").stdout
    assert "site-2" in shown
    assert "45" in shown


def test_the_commands_mistakes_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"label": "SECRET"}\n{"SECRET\n')
    for args, words in (
        ([tmp_path / "none.jsonl"], "must be an existing file"),
        ([tmp_path / "in.jsonl"], "in.jsonl:2: 8 bytes: must be a JSON object"),
        ([tmp_path / "in.jsonl", "--by", "class"], "in.jsonl:1: dict: must be a JSON object with 'class'"),
    ):
        done = call(*args, "-o", tmp_path / "out")
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert "SECRET" not in done.stderr
