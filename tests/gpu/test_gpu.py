"""Needs a CUDA device: the same worker, on it."""

from __future__ import annotations

import numpy as np
import pytest

from fedcompress.codecs import CODECS, CodecSpec, sample_spec
from fedcompress.pipeline.updates import decode_update, encode_update
from fedcompress.types import zeros
from tests.site_support import WorkerSite
from tests.support import lora_layout, normal, update_header


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


@pytest.mark.gpu
@pytest.mark.parametrize("name", CODECS)
def test_updates_on_cuda_give_the_bytes_of_the_host(name: str) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    layout = lora_layout()
    values, codec, header = normal(layout, 1), CodecSpec.parse(sample_spec(name)), update_header(layout, zeros(layout))
    device = {n: torch.from_numpy(v).cuda() for n, v in values.items()}
    assert encode_update(device, layout, codec, header)[0] == encode_update(values, layout, codec, header)[0]
