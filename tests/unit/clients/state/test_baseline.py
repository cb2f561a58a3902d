"""What a site reaches alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from clients.state.baseline import FILE, Baseline

BASELINE = Baseline(adapter="aa", base="bb", steps=200, correct=30.0, predictions=40.0, loss=0.5)


def test_saved_and_read(tmp_path: Path) -> None:
    assert Baseline.load(tmp_path) is None
    BASELINE.save(tmp_path)
    assert Baseline.load(tmp_path) == BASELINE
    replace(BASELINE, correct=10.0).save(tmp_path)
    assert Baseline.load(tmp_path) == replace(BASELINE, correct=10.0)
    for text in ("", "[]", '{"adapter": "aa"}'):
        (tmp_path / FILE).write_text(text)
        assert Baseline.load(tmp_path) is None


def test_reported_beside_the_same_adapter_base_and_rows_only() -> None:
    evaluated = {"eval_examples": 40.0, "eval_correct": 35.0}
    assert BASELINE.metrics(adapter="aa", base="bb", evaluated=evaluated) == {"alone_correct": 30.0}
    assert BASELINE.metrics(adapter="ab", base="bb", evaluated=evaluated) == {}
    assert BASELINE.metrics(adapter="aa", base="cc", evaluated=evaluated) == {}
    assert BASELINE.metrics(adapter="aa", base="bb", evaluated={"eval_examples": 41.0}) == {}
    assert BASELINE.metrics(adapter="aa", base="bb", evaluated={}) == {}
    assert BASELINE.accuracy == 0.75
