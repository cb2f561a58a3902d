"""Quality pooled over sites."""

from __future__ import annotations

import pytest

from server.ledger.quality import compute_baseline, pool_quality


def test_pool_weighs_by_rows() -> None:
    quality = pool_quality(
        [
            {"eval_examples": 10, "eval_correct": 10, "eval_loss_sum": 1.0},
            {"eval_examples": 30, "eval_correct": 0, "eval_loss_sum": 3.0},
            {"seconds_train": 5.0},
        ]
    )
    assert quality is not None
    assert (quality.accuracy, quality.loss, quality.examples) == (0.25, 0.1, 40)
    assert pool_quality([{}]) is None


def test_one_site_does_not_set_the_figure() -> None:
    honest = {"eval_examples": 100.0, "eval_correct": 80.0, "eval_loss_sum": 50.0, "eval_rows": 10.0, "eval_exact": 5.0}
    claim = 2.0**53
    hostile = {"eval_examples": claim, "eval_correct": 0.0, "eval_loss_sum": 9 * claim, "eval_rows": claim}
    quality = pool_quality([*[honest] * 4, hostile])
    assert quality is not None
    assert quality.accuracy == pytest.approx(0.8 * 0.6)  # it counts 2 of 5 at most
    assert quality.loss == pytest.approx(0.5 * 0.6 + 9 * 0.4)
    assert quality.exact == pytest.approx(0.5 * 0.6)


def test_pool_leaves_out_a_site_that_does_not_report_all() -> None:
    whole = {"eval_examples": 10.0, "eval_correct": 5.0, "eval_loss_sum": 1.0}
    for name in ("eval_correct", "eval_loss_sum"):
        quality = pool_quality([whole, {k: v for k, v in whole.items() if k != name}])
        assert quality is not None
        assert (quality.examples, quality.accuracy) == (10, 0.5)


def test_what_a_site_reaches_alone() -> None:
    assert compute_baseline({"eval_examples": 40.0, "alone_correct": 30.0}) == 0.75
    assert compute_baseline({"eval_examples": 40.0, "alone_correct": 0.0}) == 0.0
    for correct, count in ((41.0, 40.0), (-1.0, 40.0), (0.0, 0.0)):
        assert compute_baseline({"eval_examples": count, "alone_correct": correct}) is None
    assert compute_baseline({"eval_examples": 40.0}) is None
