"""``fedcompress export --merged``: a folder that stock transformers loads, with the logits of base and adapter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedcompress.adapters import load_template
from fedcompress.config.run_config import RunConfig
from fedcompress.pipeline.states import encode_snapshot
from fedcompress.types import Tensors, state_digest, zeros
from server.coordinator import Coordinator
from tests.support import normal
from tests.tiny import write_llama

ROOT = Path(__file__).parents[2]


class Nobody:
    """No sites."""

    def nodes(self) -> list[int]:
        return []


def call(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedcompress", *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110, check=False)


def published(folder: Path, state: Tensors, template: Path) -> None:
    """A ledger whose version 1 is a state."""
    config = RunConfig(state_dir=str(folder), initial_adapter=str(template), require_signatures=False)
    transport: Any = Nobody()
    coordinator = Coordinator(config, transport, lambda event: None)
    layout = coordinator.layout
    envelope = encode_snapshot(state, layout, run="run", version=1)
    with coordinator.ledger.transaction():
        coordinator.ledger.publish(1, state_digest(layout, state), envelope, state, zeros(layout))
    coordinator.ledger.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_merged_weights_have_the_logits_of_base_and_adapter(tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, template = write_llama(tmp_path / "model"), tmp_path / "initial"
    made = call("template", model, "--task", "causal-lm", "--adapter", "lora(r=4)", "--out", template)
    assert made.returncode == 0, made.stderr
    state = normal(load_template(template).adapter.layout, 1, 0.1)
    published(tmp_path / "state", state, template)
    place = [tmp_path / "state", "--template", template]
    for extra in ([], ["--merged", "--model", model]):
        out = tmp_path / ("merged" if extra else "adapter")
        done = call("export", *place, *extra, "-o", out, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["version"] == 1, "one JSON document, and nothing else"
    plain = AutoModelForCausalLM.from_pretrained(model)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        before = plain(tokens).logits
        expected = PeftModel.from_pretrained(plain, tmp_path / "adapter")(tokens).logits
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(tokens).logits
    assert (expected - before).abs().max() > 0.01
    assert torch.allclose(found, expected, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("abc")["input_ids"]

    refused = call("export", *place, "--merged", "--model", model, "-o", tmp_path / "merged")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "must be a new or an empty folder" in refused.stderr
    other = write_llama(tmp_path / "other", width=64)
    foreign = call("export", *place, "--merged", "--model", other, "-o", tmp_path / "foreign")
    assert foreign.returncode == 2
    assert "on which the run was trained" in foreign.stderr
    assert not (tmp_path / "foreign").exists()
