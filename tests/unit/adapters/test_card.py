"""The card's code, run as a reader would run it, gives the model that was trained."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedcompress.adapters.base_model import BaseModel
from fedcompress.adapters.card import LABELS, RunFacts, write_card
from fedcompress.adapters.export import export_adapter
from fedcompress.adapters.merged import save_merged
from fedcompress.config.objective import CausalLM, Classification, Objective, Seq2SeqLM
from tests.unit.adapters import sites
from tests.unit.adapters.sites import outputs, put, trained

FACTS = RunFacts(run="r", version=3, sites=2, codec="none", rule="mean", accuracy=0.5, loss=1.25)
NAMES = ("a 'quoted' one", "zwei", "三")
POOLED, STOCK = (Classification(labels=NAMES, head=head) for head in ("mean-pool-linear", "stock"))


def run_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    """Run the Python of a card in its folder, and return what it has defined."""
    monkeypatch.chdir(folder)
    code = "\n".join(re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL))
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


@pytest.mark.parametrize("objective", [POOLED, STOCK, CausalLM()], ids=["pooled", "stock", "causal"])
@pytest.mark.parametrize("form", ["adapter", "model"])
def test_the_code_of_a_card_loads_what_was_trained(
    objective: Objective, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = sites.llama(tmp_path / "base")
    run = sites.run_of(tmp_path / "run", base, "lora(r=4)", objective)
    state = trained(run, 1)
    site = run.site()
    put(site, state)
    expected = outputs(site.model, objective)
    folder = tmp_path / "out"
    export_adapter(folder, run.template, state, run.constants)
    if form == "model":
        save_merged(tmp_path / "merged", BaseModel(path=base), folder, objective)
        folder = tmp_path / "merged"
    write_card(folder, str(base), objective, FACTS, is_adapter=form == "adapter")
    loaded = run_card(folder, monkeypatch)
    assert float((outputs(loaded["model"], objective) - expected).abs().max()) < 1e-4
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "version 3" in text
    assert "2 sites" in text
    assert "accuracy 0.5000, loss 1.2500" in text
    assert (folder / LABELS).is_file() == isinstance(objective, Classification)
    if isinstance(objective, Classification):
        assert json.loads((folder / LABELS).read_text(encoding="utf-8"))["labels"] == list(NAMES)
        assert capsys.readouterr().out.splitlines()[-1] in NAMES
        assert ("is not the way to load this head" in text) == (objective.head == "mean-pool-linear")


def test_a_card_of_a_sequence_model_names_its_class_and_says_that_nobody_measured(tmp_path: Path) -> None:
    write_card(tmp_path, "org/t5", Seq2SeqLM(), RunFacts(run="r", version=0))
    text = (tmp_path / "README.md").read_text()
    assert "AutoModelForSeq2SeqLM.from_pretrained(BASE)" in text
    assert 'base_model: "org/t5"' in text
    assert "No site has measured this version." in text
    assert not (tmp_path / LABELS).exists()
