"""mergekit's sparsification: what its users count on, by loops over sorted magnitudes; it need not be installed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedcompress.merging import merge_arrays, parse_rule

SAMPLE = np.random.default_rng(0).standard_normal((128, 64)).astype(np.float32)
NORMS = {
    "l1": lambda v: np.abs(v.astype(np.float64)).sum(),
    "l2": lambda v: np.linalg.norm(v.astype(np.float64)),
    "linf": lambda v: np.abs(v).max(),
}


def sparse(call: str, values: np.ndarray = SAMPLE) -> np.ndarray:
    """One update of weight 1: the mean is what the sparsification leaves."""
    return merge_arrays(parse_rule(call), [values])


def kept_by_sorting(values: np.ndarray, first: int, stop: int) -> np.ndarray:
    """The entries from one rank to another, 0 being the smallest."""
    order = np.argsort(np.abs(values).ravel())[first:stop]
    out = np.zeros(values.size, np.float32)
    out[order] = values.ravel()[order]
    return out.reshape(values.shape)


@pytest.mark.parametrize("density", [0.1, 0.25, 0.5, 0.9])
def test_magnitude_keeps_the_share(density: float) -> None:
    assert (sparse("magnitude-prune(density=1)") == SAMPLE).all()
    found = sparse(f"magnitude-prune(density={density})")
    assert np.count_nonzero(found) == math.ceil(density * SAMPLE.size)
    assert (found == kept_by_sorting(SAMPLE, SAMPLE.size - math.ceil(density * SAMPLE.size), SAMPLE.size)).all()


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.6, 0.9])
def test_outliers_keep_one_or_two_entries_more(share: float, density: float) -> None:
    """Theirs keeps ``int(density n)``; here what is dropped at either end is rounded down."""
    gamma = share * (1 - density)
    beta = max(1 - density - gamma, 0)
    found = sparse(f"breadcrumbs(beta={beta:.12f},gamma={gamma:.12f})")
    theirs = int(density * SAMPLE.size)
    count = np.count_nonzero(found)
    assert theirs <= count <= theirs + 2
    low, top = math.floor(round(beta * SAMPLE.size, 6)), math.floor(round(gamma * SAMPLE.size, 6))
    assert (found == kept_by_sorting(SAMPLE, low, SAMPLE.size - top)).all()


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.25])
def test_outliers_of_twelve_entries(gamma: float) -> None:
    """Also where the share of outliers is below one entry, which once emptied theirs."""
    values = np.arange(1, 13, dtype=np.float32).reshape(3, 4).T
    found = sparse(f"breadcrumbs(beta={0.5 - gamma},gamma={gamma})", values)
    largest = 12 - int(gamma * 12)
    assert (found == values * ((values > math.floor(12 * (0.5 - gamma))) & (values <= largest))).all()
    assert np.count_nonzero(found) in (6, 7)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("call", ["magnitude-prune(density=0.5", "breadcrumbs(beta=0.4,gamma=0.1", "ties(density=0.5"])
def test_rescaling_retains_the_norm(call: str, norm: str) -> None:
    plain, found = sparse(f"{call})"), sparse(f"{call},rescale={norm})")
    assert NORMS[norm](found) == pytest.approx(NORMS[norm](SAMPLE), rel=1e-6)
    assert ((found != 0) == (plain != 0)).all()
    ratio = found[found != 0] / plain[plain != 0]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    assert not sparse(f"{call},rescale={norm})", np.zeros_like(SAMPLE)).any()


def test_random_masks_retain_the_norm_on_average() -> None:
    """Theirs by a norm after each draw, ours by the divisor."""
    for call in ("dare(density=0.5,seed={})", "della(density=0.5,epsilon=0.05,seed={})"):
        sums = [np.abs(sparse(call.format(seed))).sum() for seed in range(50)]
        assert np.mean(sums) == pytest.approx(np.abs(SAMPLE).sum(), rel=0.01)
        found = sparse(call.format(0))
        assert np.isfinite(found).all()
        assert 0.45 < np.count_nonzero(found) / SAMPLE.size < 0.55


def test_della_keeps_by_rank() -> None:
    """From density - epsilon for the smallest to density + epsilon for the largest entry."""
    stays = np.mean([sparse(f"della(density=0.5,epsilon=0.3,seed={seed})") != 0 for seed in range(100)], axis=0)
    by_rank = stays.ravel()[np.argsort(np.abs(SAMPLE).ravel())].reshape(8, -1).mean(axis=1)
    np.testing.assert_allclose(by_rank, 0.2 + 0.6 * (np.arange(8) + 0.5) / 8, atol=0.01)


def test_consensus_of_three_tensors() -> None:
    """The sign of the weighted sum, and the mean of what has it by the weights that have it."""
    values = np.array([[1, -2, 3, 0], [-4, -2, 1, 5], [2, 1, -8, 0]], np.float32)
    weights = np.array([1, 2, 1]) / 4
    sign = np.sign(weights @ values)
    agree = (np.sign(values) == sign) * weights[:, None]
    expected = (agree * values).sum(0) / agree.sum(0)
    found = merge_arrays(parse_rule("ties(density=1)"), list(values), [1, 2, 1])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_weights_of_either_sign_for_states() -> None:
    """Theirs takes negative weights in task arithmetic; here states do, and ``fedcompress merge``; rounds do not."""
    from fedcompress.errors import ConfigError
    from fedcompress.types import combine

    base, one, two = ({"w": SAMPLE * f} for f in (1, 3, 5))
    changes = [{"w": s["w"] - base["w"]} for s in (one, two)]
    found = combine([base, *changes], [1, 1, -0.5])["w"]
    np.testing.assert_allclose(found, SAMPLE * (1 + 2 - 2), rtol=1e-6)
    with pytest.raises(ConfigError, match="weights"):
        merge_arrays(parse_rule("task-arithmetic"), [SAMPLE, SAMPLE], [1, -0.5])
