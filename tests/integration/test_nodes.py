"""One site on two nodes: two processes on loopback that share nothing but a token and an address."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedcompress.errors import TrainingError
from fedcompress.runtime.process_group import wait_until
from fedcompress.types import l2_norm, subtract
from tests.site_support import WorkerSite, metrics_of, write_site


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_nodes(folder: Path, port: int, **engine: Any) -> Path:
    """site.toml of a site of two nodes with a rank each."""
    path = write_site(folder, "north", rows=48)
    lines = {"nodes": 2, "rendezvous": f'"127.0.0.1:{port}"', "kind": '"accelerate"', **engine}
    path.write_text(path.read_text() + "".join(f"{k} = {v}\n" for k, v in lines.items()))
    return path


@contextmanager
def node(file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The further node, as `fedcompress site node` runs it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "clients.worker.node_agent", "--site", str(file), "--node-rank", "1"]
    )
    ranks: list[psutil.Process] = []
    try:
        yield process
        if process.poll() is None:
            ranks = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.terminate()
        process.wait(timeout=20)
    _, left = psutil.wait_procs(ranks, timeout=10)
    assert not left, "a rank outlived its node"


def alive() -> None:
    """Nothing that we wait for can end."""


def trained(site: WorkerSite) -> dict[str, Any]:
    return site.trained()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_nodes_are_one_node_with_two_ranks(tmp_path: Path, template: Path) -> None:
    """The same bytes as one node; then the further node is killed in a round, comes back, and the round is done."""
    alone = WorkerSite(write_site(tmp_path / "alone", "north", rows=48, ranks=2), template)
    alone.file.write_text(alone.file.read_text() + 'kind = "accelerate"\n')
    try:
        alone.train(alone.task(1))
        expected = trained(alone)
    finally:
        alone.stop()
    site = WorkerSite(write_nodes(tmp_path / "nodes", free_port()), template)
    try:
        site.spawn()
        with node(site.file) as further, ThreadPoolExecutor(1) as pool:
            site.train(site.task(1))
            found = trained(site)
            assert l2_norm(subtract(found, expected).values()) <= 1e-6 * l2_norm(expected.values())
            asked = pool.submit(site.train, site.task(2, steps=24))
            wait_until(lambda: any("train 2/24" in x for x in site.log), timeout=90, what="step", alive=alive)
            (rank,) = psutil.Process(further.pid).children()
            os.kill(further.pid, signal.SIGKILL)
            psutil.wait_procs([rank], timeout=20)
            assert not rank.is_running(), "a rank outlived its node"
            wait_until(
                lambda: any("rank" in x and "died" in x for x in site.log), timeout=60, what="death", alive=alive
            )
            with node(site.file):
                payload, replayed = asked.result(timeout=200)
        assert not replayed
        assert "steps_done" not in metrics_of(payload)
    finally:
        site.stop()


@pytest.mark.timeout(120)
def test_a_round_without_the_further_node_fails_with_its_name(tmp_path: Path, template: Path) -> None:
    site = WorkerSite(write_nodes(tmp_path, free_port(), start_timeout=2), template)
    try:
        site.spawn()
        with pytest.raises(TrainingError, match="0 of 2 ranks after 2 s: node 1 has not joined") as caught:
            site.train(site.task(1))
        assert caught.value.code == "ranks-not-ready"
    finally:
        site.stop()
