"""What a run exports says what it is, and how it is used."""

from __future__ import annotations

import json
from pathlib import Path

from fedcompress.adapters import load_adapter
from server.exported import gather_facts
from server.ledger.ledger import Ledger
from server.ledger.reader import LedgerReader
from tests.unit.server.memory import World


def test_the_export_of_a_run_has_its_card_and_labels(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run(rule="mean")
    folder = tmp_path / "coordinator" / "adapter"
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "codec `lora-ternary`" in text
    assert "merge rule `mean`" in text
    assert f"{len(world.sites)} sites" in text
    labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))["labels"]
    assert f"LABELS = {labels!r}" in text
    assert load_adapter(folder).layout  # they do not disturb those who read the adapter


def test_quality_is_that_of_the_version_that_is_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "run")
    for round_, correct in ((1, 2.0), (2, 5.0)):
        ledger.record_metrics(round_, "a", {"eval_correct": correct, "eval_loss_sum": 20.0, "eval_examples": 10.0})
        with ledger.transaction():
            ledger.end_round(round_, round_, 1, [], 0.0)
    ledger.close()
    with LedgerReader(tmp_path) as reader:
        facts = [gather_facts(reader, "run", version, {"codec": "none"}) for version in (0, 1, 2)]
    assert [fact.accuracy for fact in facts] == [0.2, 0.5, None]  # a round evaluates the version that it starts from
    assert [fact.loss for fact in facts] == [2.0, 2.0, None]
    assert {fact.codec for fact in facts} == {"none"}
    assert {fact.rule for fact in facts} == {""}
