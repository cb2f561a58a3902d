"""Needs a CUDA device: the same worker, on it."""

from __future__ import annotations

import numpy as np
import pytest

from fedcompress.pipeline import decode_update
from tests.site_support import WorkerSite


@pytest.mark.gpu
@pytest.mark.timeout(300)
def test_a_round_on_cuda(worker_site: WorkerSite) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    payload, _ = worker_site.train(worker_site.task(1, steps=4, codec="none"))
    _, update = decode_update(payload, worker_site.adapter.layout)
    assert all(np.isfinite(v).all() for v in update.values())
    assert any(np.abs(v).max() > 0 for v in update.values())
