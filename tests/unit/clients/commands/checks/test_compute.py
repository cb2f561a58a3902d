"""Checks of packages, devices and memory, on what is right and on what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from clients.commands.checks import compute
from clients.commands.checks.base import FAIL, OK, WARN
from clients.runtime.hardware import Gpu
from tests.unit.clients.commands.subjects import states, subject


def test_packages(site_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(compute.check_packages(subject(site_file))) == [OK]
    monkeypatch.setattr(compute.metadata, "version", lambda name: "0.0.1" if name == "peft" else "9999")
    found = compute.check_packages(subject(site_file))[0]
    assert (found.status, "peft 0.0.1 (wanted" in found.text) == (WARN, True)

    def absent(name: str) -> str:
        raise compute.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(compute.metadata, "version", absent)
    assert compute.check_packages(subject(site_file))[0].status == FAIL


def test_gpus_that_are_named_or_cannot_be_used(site_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compute.find_absent_gpus("0,3,GPU-ab", 2) == ["3"]
    assert compute.find_absent_gpus(None, 0) == compute.find_absent_gpus("", 0) == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(compute, "gpus", lambda: [Gpu(index=0, name="H200", total=1 << 37, used=0)])
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (found,) = compute.check_device(subject(site_file))
    assert (found.status, "cannot use them" in found.text) == (FAIL, True)
    monkeypatch.setattr(compute, "gpus", list)
    assert states(compute.check_device(subject(site_file))) == [OK]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert states(compute.check_device(subject(site_file))) == [FAIL]


def test_memory_by_the_planner(site_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "gpus", list)
    monkeypatch.setattr(compute, "plan_rank_bytes", lambda subject: 1 << 30)
    for total, free, status in ((8 << 30, 4 << 30, OK), (8 << 30, 1 << 30, WARN), (1 << 30, 1 << 30, FAIL)):
        monkeypatch.setattr(compute, "host_memory", lambda total=total, free=free: (total, free))
        assert states(compute.check_memory(subject(site_file))) == [status]
    card = Gpu(index=0, name="x", total=2 << 30, used=1 << 20)
    monkeypatch.setattr(compute, "gpus", lambda: [card])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "of the fullest GPU" in compute.check_memory(subject(site_file))[0].text
