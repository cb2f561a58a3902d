"""Cheap bases against the exact one."""

import pytest
import torch

from fedcompress.optim.state.bases import compute_basis


@pytest.mark.parametrize("kind", ["randomized", "power"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_cheap_bases_hold_95_percent_of_what_the_exact_one_holds(kind: str, side: str) -> None:
    """256 x 256, rank 64, singular values 1 / i; the warm start is the basis of a gradient before."""
    drawn = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(256, 256, generator=drawn))[0] for _ in range(2))
    grad = left @ torch.diag(1 / torch.arange(1, 257)) @ right.T
    earlier = grad + 0.02 * torch.randn(256, 256, generator=drawn) / 16

    def energy(basis: torch.Tensor) -> float:
        torch.testing.assert_close(basis.T @ basis, torch.eye(64), atol=1e-4, rtol=0)
        return float((grad @ basis if side == "right" else basis.T @ grad).norm() ** 2)

    before = compute_basis(earlier, 64, "randomized", side=side, generator=drawn) if kind == "power" else None
    found = compute_basis(grad, 64, kind, side=side, before=before, generator=drawn)
    assert energy(found) >= 0.95 * energy(compute_basis(grad, 64, "svd", side=side))
