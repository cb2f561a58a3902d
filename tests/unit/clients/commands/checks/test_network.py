"""Checks of the way to the SuperLink and of the worker's socket, on what is right and on what is wrong."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clients.commands.checks import files, network
from clients.commands.checks.base import FAIL, OK, WARN
from clients.worker.main import lease
from tests.unit.clients.commands.subjects import states, subject


def test_the_way_to_the_superlink(site_file: Path, dated_host: str) -> None:
    there = subject(site_file, superlink=dated_host, insecure=True)
    assert states([*network.check_superlink(there), *network.check_clock(there)]) == [OK, OK]
    assert states(network.check_clock(subject(site_file, superlink=dated_host))) == [WARN], "it speaks no TLS"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = subject(site_file, superlink=f"127.0.0.1:{probe.getsockname()[1]}", insecure=True)
        assert states([*network.check_superlink(nobody), *network.check_clock(nobody)]) == [FAIL, WARN]
    assert (
        states([*network.check_superlink(subject(site_file)), *network.check_clock(subject(site_file))]) == [WARN] * 2
    )
    assert [network.judge_skew(s).status for s in (2, 61, 301)] == [OK, WARN, FAIL]


def _certificate(path: Path, begins: datetime, ends: datetime) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(begins).not_valid_after(ends)
    path.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def test_certificates_that_end(site_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    file, now, day = tmp_path / "ca.crt", datetime.now(UTC), timedelta(days=1)
    given = subject(site_file, root_certificates=file)
    for begins, ends, status in ((-9, 300, OK), (-9, 9, WARN), (-9, -1, FAIL), (1, 300, FAIL)):
        _certificate(file, now + begins * day, now + ends * day)
        assert states(network.check_certificates(given)) == [status], (begins, ends)
    file.write_text("nonsense")
    assert states(network.check_certificates(given)) == [FAIL]
    assert network.check_certificates(subject(site_file)) == []


def test_a_worker_that_runs_is_said(site_file: Path) -> None:
    with lease(site_file.parent / "state"):
        (found,) = network.check_worker(subject(site_file))
        assert states(files.check_permissions(subject(site_file))) == [OK], "a worker makes its folder private"
    assert f"pid {os.getpid()}" in found.text
