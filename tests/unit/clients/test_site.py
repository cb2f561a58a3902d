"""site.toml: each mistake is one line with field, value and rule."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clients.site import SiteConfig
from clients.worker.main import lease
from fedcompress.errors import ConfigError, LockedError
from tests.support import ROOT

GOOD = """
[site]
name = "north"
state_dir = "state"
[model]
path = "model"
[data]
train = "train.jsonl"
heldout = "heldout.jsonl"
[engine]
ranks = 1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    for name in ("train", "heldout"):
        (tmp_path / f"{name}.jsonl").write_text("")
    return tmp_path


def load(folder: Path, text: str) -> SiteConfig:
    (folder / "site.toml").write_text(text)
    return SiteConfig.load(folder / "site.toml")


def test_a_good_file(folder: Path) -> None:
    site = load(folder, GOOD)
    assert (site.name, site.state_dir, site.model.path) == ("north", folder / "state", folder / "model")
    assert (site.engine.zero_stage, site.max_update_norm, site.data.text) == (2, 0.0, "text")


def test_the_example_in_deploy_has_only_known_keys(folder: Path) -> None:
    example = (ROOT / "deploy" / "site.example.toml").read_text()
    for old, new in (("models/all-MiniLM-L6-v2", "model"), ("data/train", "train"), ("data/heldout", "heldout")):
        example = example.replace(old, new)
    assert load(folder, example).name == "hospital-north"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[engine]", "[motor]", ["motor", "unknown section", "engine"]),
        ("ranks = 1", "rank = 1", ["engine.rank", "unknown key", "ranks"]),
        ("ranks = 1", "ranks = '1'", ["engine.ranks", "'1'", "type int"]),
        ("ranks = 1", "ranks = true", ["engine.ranks", "True", "type int"]),
        ("ranks = 1", "ranks = 0", ["engine.ranks: 0", "from 1 to"]),
        ("ranks = 1", "ranks = 4096", ["engine.ranks: 4096", "cores of this machine"]),
        ("ranks = 1", "zero_stage = 4", ["engine.zero_stage: 4", "0, 1, 2 or 3"]),
        ("ranks = 1", "micro_batch = -1", ["engine.micro_batch: -1", "at least 0"]),
        ("ranks = 1", 'keep_model = "x"', ["engine.keep_model: x", "pressure"]),
        ("ranks = 1", 'kind = "x"', ["engine.kind: x", "accelerate"]),
        ("ranks = 1", 'offload = "cpu"\nzero_stage = 0', ["engine.offload: cpu", "zero_stage"]),
        ("ranks = 1", 'offload = "nvme"', ["engine.offload_path", "folder on an NVMe drive"]),
        ("ranks = 1", 'sharding = "fsdp2"', ["engine.sharding: fsdp2", "accelerate"]),
        ("train.jsonl", "absent.jsonl", ["data.train", "absent.jsonl", "existing file"]),
        ('"train.jsonl"', '""', ["data.train", "must be set"]),
        ("train.jsonl", "train.txt", ["data.train", "train.txt", "ends in .jsonl, .csv, .tsv or .parquet"]),
        ("train.jsonl", "hf:squad", ["data.train: hf:squad", "hf:organisation/name"]),
        ('"train.jsonl"', '"train.jsonl"\nstreaming = 1', ["data.streaming", "type bool"]),
        ('"train.jsonl"', '"train.jsonl"\nstreaming_above = -1', ["data.streaming_above: -1", "at least 0"]),
        ('path = "model"', 'path = "nowhere"', ["model.path", "nowhere", "config.json"]),
        ('"north"', '"a b"', ["site.name", "'a b'", "must match"]),
        ('name = "north"', "", ["site.name", "must be set"]),
        ('heldout = "heldout.jsonl"', "heldout_share = 1.0", ["data.heldout_share: 1.0", "between 0 and 1"]),
        ('path = "model"', 'path = "model"\ndtype = "half"', ["model.dtype: half", "bfloat16"]),
        ('path = "model"', 'path = "model"\ncompile = 1', ["model.compile", "type bool"]),
        ("[site]", "[site", ["site.toml", "readable TOML"]),
        ("[engine]", "[privacy]\nmax_update_norm = -1\n[engine]", ["privacy.max_update_norm: -1", ">= 0"]),
        ("[engine]", "[privacy]\nmax_update_norm = nan\n[engine]", ["privacy.max_update_norm: nan", ">= 0"]),
    ],
)
def test_mistakes(folder: Path, old: str, new: str, words: list[str]) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        load(folder, GOOD.replace(old, new))
    assert "\n" not in str(caught.value).replace("\n", "", 0) or "TOML" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["hf:organisation/name:train", "package.module:function"])
def test_sources_that_are_no_paths(folder: Path, text: str) -> None:
    """They are neither imported nor asked for when the file is read."""
    site = load(folder, GOOD.replace("train.jsonl", text))
    assert site.data.train == text
    assert site.data.heldout == str(folder / "heldout.jsonl")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"site.toml: .*absent.toml"):
        SiteConfig.load(tmp_path / "absent.toml")


def test_the_lease_is_exclusive_and_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from clients.worker.main import lease\n"
        "with lease(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(LockedError, match=rf"held by the worker with pid {holder.pid}"), lease(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    with lease(tmp_path):
        assert (tmp_path / "worker.lock").read_text() == str(os.getpid())
