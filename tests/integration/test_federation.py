"""Real SuperLink, SuperNodes, workers and ZeRO ranks on loopback."""

from __future__ import annotations

import json
import math
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedcompress.adapters import load_adapter
from fedcompress.types import state_digest
from tests.faults.links import Link, ShapedProxy
from tests.site_support import LABELS, run_federation


def ledger(folder: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(folder / "coordinator" / "ledger.db") as db:
        return db.execute(query).fetchall()


def leftovers(folder: Path) -> list[str]:
    """Command lines of processes that still refer to a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if any(str(folder) in word for word in words):
            found.append(" ".join(words))
    return found


@pytest.mark.timeout(180)
def test_one_round_and_its_ledger(tmp_path: Path, template: Path) -> None:
    """One site, one round, one evaluation: bytes, metrics, version and export agree; nothing is left running."""
    events = run_federation(tmp_path, template, sites=1)
    by_name = {e["event"]: e for e in events}
    assert by_name["round"]["merged"] == 1
    assert {e["version"] for e in events if e["event"] == "quality"} == {0, 1}
    up = sum(e["bytes"] for e in events if e["event"] == "reply")
    assert by_name["finished"]["up"] == {"payload_bytes": up, "messages": 2}
    ((version, digest),) = ledger(tmp_path, "SELECT version, digest FROM version ORDER BY version DESC LIMIT 1")
    exported = load_adapter(tmp_path / "coordinator" / "adapter")
    assert version == 1
    assert state_digest(exported.layout, exported.tensors).hex() == digest
    assert ledger(tmp_path, "SELECT COUNT(*) FROM refusal") == [(0,)]
    assert leftovers(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_ledger_equals_what_crossed_the_sockets(tmp_path: Path, template: Path) -> None:
    """Payload bytes against a counting proxy between SuperNodes and SuperLink.

    Flower's own bytes in each direction (heartbeats, polling, object trees) are measured in a
    run whose payloads are small, as a constant for each message, and taken off a run whose
    payloads are large: what is left must be the ledger's payload, within 5 %.
    """
    socket_bytes, payload, messages = {}, {}, {}
    for codec in ("lora-ternary", "none"):
        proxy = ShapedProxy(Link(mbit=math.inf))
        try:
            events = run_federation(
                tmp_path / codec, template, rounds=2, via=proxy.to, codec=codec, **{"downlink-codec": codec}
            )
        finally:
            proxy.close()
        for way in ("up", "down"):
            end = events[-1][way]
            socket_bytes[codec, way] = proxy.carried[way]
            payload[codec, way], messages[codec, way] = end["payload_bytes"], end["messages"]
    for way in ("up", "down"):
        overhead = (socket_bytes["lora-ternary", way] - payload["lora-ternary", way]) / messages["lora-ternary", way]
        carried = socket_bytes["none", way] - overhead * messages["none", way]
        print(f"{way}: overhead {overhead:.0f} bytes a message, carried {carried:.0f}, ledger {payload['none', way]}")
        assert overhead > 0
        assert carried == pytest.approx(payload["none", way], rel=0.05), way


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_equal_seeds_give_equal_adapter_bytes(tmp_path: Path, template: Path) -> None:
    """Two runs of two sites and two rounds."""
    files = []
    for name in ("first", "second"):
        run_federation(tmp_path / name, template, rounds=2)
        files.append((tmp_path / name / "coordinator" / "adapter" / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1]


USER = """
import json, sys
BASE, ADAPTER, LABELS = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
exec(compile(open(sys.argv[4]).read(), "usage", "exec"))
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(BASE)
right = count = 0
with torch.no_grad():
    for name in sys.argv[6:]:
        for line in open(name):
            row = json.loads(line)
            ids = tokenizer(row["text"], truncation=True, max_length=int(sys.argv[5]), return_tensors="pt")
            logits = model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"])
            right += LABELS[int(logits.argmax())] == row["label"]
            count += 1
assert not any(m == "fedcompress" or m.startswith("fedcompress.") for m in sys.modules)
print(json.dumps({"accuracy": right / count, "count": count}))
"""


def stock_accuracy(folder: Path, adapter: Path, labels: tuple[str, ...], max_length: int, files: list[Path]) -> float:
    """Accuracy of an adapter by stock PEFT, with the snippet of its card, without fedcompress."""
    from fedcompress.adapters.classifier import USAGE
    from fedcompress.demo.data import model_folder

    usage = folder / "usage.py"
    usage.write_text(USAGE)
    args = [model_folder(), adapter, json.dumps(labels), usage, max_length, *files]
    done = subprocess.run(
        [sys.executable, "-c", USER, *map(str, args)], check=True, capture_output=True, text=True, cwd=folder
    )
    return float(json.loads(done.stdout.splitlines()[-1])["accuracy"])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_adapter_is_stock_peft_with_the_same_accuracy(tmp_path: Path, template: Path) -> None:
    """A process without fedcompress loads the export, and finds the coordinator's accuracy."""
    events = run_federation(tmp_path, template, rounds=2, steps=8)
    quality = {e["version"]: e for e in events if e["event"] == "quality"}
    files = sorted((tmp_path / "sites").glob("*-heldout.jsonl"))
    found = stock_accuracy(tmp_path, tmp_path / "coordinator" / "adapter", LABELS, 24, files)
    assert found == pytest.approx(quality[2]["accuracy"], abs=1e-6)
    assert quality[2]["accuracy"] > quality[0]["accuracy"]
