"""``site doctor``: each check on what is right and on what is wrong; a check that breaks hides no other."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from clients.commands import doctor
from clients.commands.checks import compute, files, network
from clients.commands.checks.base import FAIL, OK, WARN, Check, Subject, fail, ok
from clients.commands.doctor import Options, run
from clients.runtime.hardware import Gpu
from clients.site import SiteConfig
from fedcompress.adapters.fingerprint import base_fingerprint
from fedcompress.adapters.template import Template
from fedcompress.config.objective import Classification
from fedcompress.errors import ConfigError
from tests.support import lora_layout, normal

TOML = '[site]\nname="north"\nstate_dir="state"\n[model]\npath="model"\n[data]\ntrain="t.jsonl"\nheldout="h.jsonl"\n'


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
    save_file({"w": np.ones(8, np.float32)}, tmp_path / "model" / "model.safetensors")
    for name in ("t", "h"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "a", "label": "yes"}\n' * 3)
    (tmp_path / "site.toml").write_text(TOML)
    return tmp_path / "site.toml"


def subject(file: Path, **changes: Any) -> Subject:
    return Subject(**{"file": file, "site": SiteConfig.load(file), **changes})


def template(fingerprint: str = "") -> Template:
    from fedcompress.adapters import Adapter

    layout = lora_layout()
    adapter = Adapter(config={}, layout=layout, tensors=normal(layout, 0))
    return Template(adapter=adapter, objective=Classification(labels=("yes", "no")), base_fingerprint=fingerprint)


def states(found: list[Check]) -> list[str]:
    return [check.status for check in found]


def test_lines_and_exit_codes(site_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def breaks(subject: Subject) -> list[Check]:
        raise RuntimeError("of its own\nmaking")

    good = (lambda subject: [ok("first", "is well")],)
    assert run(Options(site=str(site_file)), good) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["ok", "ok"]
    bad = (breaks, lambda subject: [fail("last", "is not\nwell", "mend it")])
    assert run(Options(site=str(site_file), as_json=True), bad) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(c["name"], c["status"]) for c in found["checks"]] == [("config", OK), ("breaks", FAIL), ("last", FAIL)]
    assert found["ok"] is False
    assert run(Options(site=str(site_file)), bad) == 1
    shown = capsys.readouterr().out
    assert "-> mend it" in shown
    assert "is not\\nwell" in shown
    assert "2 of 3 checks failed" in shown


def test_a_bad_site_toml_and_a_bad_template_are_results(site_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Options(site=str(site_file), run_template=str(site_file.parent), as_json=True), ()) == 1
    assert [c["name"] for c in json.loads(capsys.readouterr().out)["checks"]] == ["config", "template"]
    site_file.write_text(TOML.replace('"north"', '"no/rth"'))
    assert run(Options(site=str(site_file), as_json=True)) == 1
    (only,) = json.loads(capsys.readouterr().out)["checks"]
    assert "site.name" in only["text"]
    with pytest.raises(ConfigError, match="SITE"):
        run(Options(site="/absent.toml"))


def test_weights_that_were_cut_off(site_file: Path) -> None:
    assert states(files.check_model(subject(site_file))) == [OK, OK]
    weights = site_file.parent / "model" / "model.safetensors"
    whole = weights.read_bytes()
    for wrong in (whole[:-1], whole + b"x", whole[:20], b"", b"\xff" * 40):
        weights.write_bytes(wrong)
        assert states(files.check_model(subject(site_file))) == [FAIL], wrong
    weights.unlink()
    (found,) = files.check_model(subject(site_file))
    assert "no weights" in found.text


def test_another_base_than_the_templates(site_file: Path) -> None:
    here = base_fingerprint(site_file.parent / "model").hex()
    assert files.check_model(subject(site_file, template=template(here)))[1].status == OK
    other = files.check_model(subject(site_file, template=template("ab" * 32)))[1]
    assert (other.status, "abababab" in other.text) == (FAIL, True)


def test_rows(site_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = site_file.parent / "t.jsonl"
    assert states(files.check_data(subject(site_file))) == [OK, OK]
    train.write_text('{"text": "a", "label": "yes"}\nnot json\n')
    found = files.check_data(subject(site_file))[0]
    assert (found.status, "t.jsonl:2" in found.text) == (FAIL, True)
    train.write_text('{"question": "a"}\n')
    found = files.check_data(subject(site_file))[0]
    assert (found.status, "question" in found.text) == (WARN, True)
    train.write_text("\n")
    assert files.check_data(subject(site_file))[0].status == FAIL

    def tokenizer(text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [1]}

    monkeypatch.setattr(files, "load_tokenizer", lambda folder: tokenizer)
    train.write_text('{"text": "a", "label": "yes"}\n{"text": "a", "label": "secret"}\n')
    found, heldout = files.check_data(subject(site_file, template=template()))
    assert (found.status, "t.jsonl:2.label" in found.text, "secret" in found.text) == (FAIL, True, False)
    assert (heldout.status, "all fit" in heldout.text) == (OK, True)


def test_modes_of_folders_and_keys(site_file: Path, tmp_path: Path) -> None:
    assert states(files.check_permissions(subject(site_file))) == [OK]
    state, key = tmp_path / "state", tmp_path / "node.key"
    state.mkdir()
    for mode, status in ((0o700, OK), (0o755, WARN), (0o777, FAIL), (0o770, FAIL)):
        state.chmod(mode)
        assert files.check_permissions(subject(site_file))[0].status == status, oct(mode)
    state.chmod(0o700)
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    for mode, status in ((0o600, OK), (0o640, FAIL)):
        key.chmod(mode)
        assert files.check_permissions(subject(site_file, key=key))[1].status == status, oct(mode)
    key.chmod(0o600)
    key.write_text("ssh-ed25519 AAAA")
    assert files.check_permissions(subject(site_file, key=key))[1].status == FAIL
    assert files.check_permissions(subject(site_file, key=tmp_path / "absent"))[1].status == FAIL


def test_disk(site_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, status in ((1 << 40, OK), (1 << 30, WARN), (1 << 20, FAIL)):
        monkeypatch.setattr(files.shutil, "disk_usage", lambda path, free=free: type("Usage", (), {"free": free}))
        assert states(files.check_disk(subject(site_file))) == [status]


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


def test_a_worker_that_runs_is_said(site_file: Path) -> None:
    from clients.worker.main import lease

    with lease(site_file.parent / "state"):
        (found,) = network.check_worker(subject(site_file))
        assert states(files.check_permissions(subject(site_file))) == [OK], "a worker makes its folder private"
    assert f"pid {os.getpid()}" in found.text
    assert doctor.CHECKS[0] is compute.check_packages
