"""The way of a site team, on MiniLM: init, doctor, a local baseline, up, status, down."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedcompress.adapters import load_adapter
from fedcompress.demo import data as demo_data
from fedcompress.identity import PrivateKey
from fedcompress.runtime.process_group import free_port
from fedcompress.types import l2_norm, subtract
from tests.site_support import write_site

ROOT = Path(__file__).parents[2]


def call(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedcompress", "site", *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # a relative one would not be found from there
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=250,
        check=False,
    )


def facts(*args: object, cwd: Path, code: int = 0) -> Any:
    done = call(*args, "--json", cwd=cwd)
    assert done.returncode == code, done.stderr + done.stdout
    return json.loads(done.stdout)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A site team's folder, with a site.toml that `init` wrote."""
    write_site(tmp_path, "north", rows=48)
    model, rows = demo_data.model_folder(), ["--train", "north-train.jsonl", "--heldout", "north-heldout.jsonl"]
    found = facts("init", "--name", "north", "--state-dir", "state", "--model", model, *rows, cwd=tmp_path)
    assert found["file"] == str(tmp_path / "site.toml")
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_from_init_to_a_local_baseline(folder: Path, template: Path) -> None:
    examined = facts("doctor", "site.toml", "--run-template", template, "--max-length", 24, cwd=folder)
    by_name = {check["name"]: check for check in examined["checks"]}
    assert not [check for check in examined["checks"] if check["status"] == "fail"]
    for name in ("fingerprint", "tokenizer", "data.train", "data.heldout", "memory"):
        assert by_name[name]["status"] == "ok", by_name[name]

    # as a site of a signed federation is set up: nobody signs the tasks of a local training
    _, public = PrivateKey.new("coordinator").save(folder)
    text = re.sub(r"(?m)^\[identity\]\n|^#? ?coordinator = .*\n", "", (folder / "site.toml").read_text())
    (folder / "site.toml").write_text(f'{text}\n[identity]\ncoordinator = "{public.name}"\n')
    shape = ["--rounds", 2, "--steps", 4, "--batch-size", 8, "--max-length", 24]
    result = facts("train", "site.toml", "--local", "--template", template, *shape, "-o", "base", cwd=folder)
    assert (result["steps"], result["train_examples"], len(result["by_round"])) == (8, 48, 3)
    assert result["after"]["loss"] < result["before"]["loss"]
    alone = facts("status", "site.toml", cwd=folder, code=1)["alone"]  # for the coordinator, beside a run's figures
    assert (round(alone["accuracy"], 6), alone["steps"]) == (result["after"]["accuracy"], 8)
    assert f"accuracy {result['after']['accuracy']:.4f}" in (folder / "base" / "README.md").read_text()
    trained, start = load_adapter(folder / "base"), load_adapter(template)
    assert l2_norm(subtract(trained.tensors, start.tensors).values()) > 0
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])]

    log = folder / "state" / "local" / "logs" / "worker.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line.get("rank") for line in lines} == {None, 0}
    assert any(line.get("run") == "local" and line["round"] == 2 for line in lines)
    refused = call("train", "site.toml", "--template", template, cwd=folder)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


@pytest.mark.timeout(300)
def test_up_status_and_down(folder: Path) -> None:
    """Without a SuperLink: the SuperNode goes on trying, and the worker is there."""
    link = ["--superlink", f"127.0.0.1:{free_port()}", "--insecure"]
    up = facts("up", "site.toml", *link, "--detach", cwd=folder)
    try:
        second = call("up", "site.toml", *link, cwd=folder)
        assert second.returncode == 2
        assert f"is up already, with pid {up['pid']}" in second.stderr
        for _ in range(30):
            done = call("status", "site.toml", "--json", cwd=folder)
            if done.returncode == 0:
                break
        found = json.loads(done.stdout)
        assert (found["site"], found["up_pid"]) == ("north", up["pid"])
        members = psutil.Process(up["pid"]).children(recursive=True)
        assert len(members) >= 2
    finally:
        down = facts("down", "site.toml", cwd=folder)
    assert down["ended"] == [f"up (pid {up['pid']})"]
    assert not down["killed"]
    assert not [p for p in members if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert "no worker runs" in call("status", "site.toml", cwd=folder).stdout
    assert call("down", "site.toml", cwd=folder).returncode == 1
    logs = call("logs", "site.toml", cwd=folder)
    assert "listening on" in logs.stdout
