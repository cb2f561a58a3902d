"""``fedcompress site init``: every key with its comment, nothing lost, nothing overwritten."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from clients.commands.init import QUESTIONS, Options, collect, render, run
from clients.site import KNOWN, SiteConfig
from fedcompress.errors import ConfigError
from fedcompress.identity import PrivateKey
from fedcompress.identity.certs import CertOptions, make_certs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": "b"}\n')
    return tmp_path


def options(folder: Path, **changes: Any) -> Options:
    answers = {"site.name": "north", "model.path": "model"}
    return Options(**{"out": str(folder / "site.toml"), "answers": answers, "yes": True, **changes})


def test_defaults_make_a_file_that_loads(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(options(folder, as_json=True)) == 0
    assert json.loads(capsys.readouterr().out)["site"] == "north"
    site = SiteConfig.load(folder / "site.toml")
    assert (site.data.train, site.data.heldout) == (str(folder / "train.jsonl"), "")
    text = (folder / "site.toml").read_text()
    for section, keys in KNOWN.items():
        assert f"[{section}]" in text
        for key in keys:
            assert any(line.lstrip("# ").startswith(f"{key} =") for line in text.splitlines()), f"{section}.{key}"
    assert "# training processes" in text


def test_answers_are_asked_for_once(folder: Path) -> None:
    asked: list[str] = []

    def ask(text: str, default: Any) -> str:
        asked.append(text)
        given = {"Training processes": "1", "CPU threads of a process": "2"}
        return given.get(text, "train.jsonl" if "Training rows" in text else str("" if default is None else default))

    assert run(options(folder, yes=False), ask) == 0
    assert len(asked) == len(QUESTIONS) - 2, "two were given"
    assert SiteConfig.load(folder / "site.toml").engine.threads == 2


def test_a_required_answer_is_asked_for_again(folder: Path) -> None:
    given = iter(["", "", "model"])

    def ask(text: str, default: Any) -> str:
        return next(given) if text.startswith("Base model") else str("" if default is None else default)

    assert collect(options(folder, answers={}, yes=False), folder, ask)["model.path"] == "model"


def test_a_file_is_not_overwritten(folder: Path) -> None:
    (folder / "site.toml").write_text("mine")
    with pytest.raises(ConfigError, match="--force"):
        run(options(folder))
    assert (folder / "site.toml").read_text() == "mine"
    assert run(options(folder, force=True)) == 0


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"site.name": "north"}, "--model: nothing"),
        ({"site.name": "a b", "model.path": "model"}, "site.name"),
        ({"site.name": "north", "model.path": "model", "engine.ranks": "two"}, "engine.ranks: 'two'"),
        ({"site.name": "north", "model.path": "absent/too/deep"}, "model.path"),
    ],
)
def test_wrong_answers_write_nothing(folder: Path, answers: dict[str, Any], words: str) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(ConfigError, match=words):
        run(options(folder, answers=answers))
    assert sorted(folder.iterdir()) == before


def test_text_that_toml_must_escape() -> None:
    answers = {"site.name": "n", "site.state_dir": 'a "b" \\ # c', "model.path": "m\n", "data.train": "é"}
    found = tomllib.loads(render(answers))
    assert found["site"]["state_dir"] == 'a "b" \\ # c'
    assert (found["model"]["path"], found["data"]["train"]) == ("m\n", "é")


def test_the_command_without_a_terminal(folder: Path) -> None:
    command = [sys.executable, "-m", "fedcompress", "site", "init", "--out", folder / "x.toml", "--name", "north"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: --model: nothing")
    command += ["--model", "model"]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, check=False, capture_output=True).returncode == 0


def make_site(folder: Path, **answers: str) -> SiteConfig:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "rows.jsonl").write_text("{}\n")
    basics = {"site.name": "north", "model.path": "model", "data.train": "rows.jsonl"}
    assert run(Options(out=str(folder / "site.toml"), answers={**basics, **answers}, yes=True)) == 0
    return SiteConfig.load(folder / "site.toml")


def test_init_with_keys(tmp_path: Path) -> None:
    PrivateKey.new("north").save(tmp_path / "keys")
    make_certs(CertOptions(hosts=("localhost",), nodes=("north",)), tmp_path / "keys")
    site = make_site(
        tmp_path,
        **{
            "identity.key": "keys/north.key",
            "identity.coordinator": "keys/north.pub",
            "superlink.address": "localhost:8000",
            "superlink.root_certificates": "keys/ca.crt",
            "superlink.node_key": "keys/north.node.key",
        },
    )
    assert site.identity.key == tmp_path / "keys" / "north.key"
    assert site.superlink.address == "localhost:8000"
    assert site.superlink.node_key == tmp_path / "keys" / "north.node.key"


def test_init_without_keys(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    assert (site.identity.key, site.identity.coordinator, site.superlink.address) == (None, None, "")
