"""Checks of model, data, folders and keys, on what is right and on what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clients.commands.checks import files
from clients.commands.checks.base import FAIL, OK, WARN
from fedcompress.adapters.fingerprint import base_fingerprint
from tests.unit.clients.commands.subjects import states, subject, template


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
