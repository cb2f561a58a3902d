"""``fedcompress evaluate`` against log-likelihoods of our own, on a task of one's own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedcompress.adapters import load_template
from fedcompress.adapters.export import export_adapter
from fedcompress.errors import MissingPackageError
from fedcompress.experiments.lm_eval import run_tasks
from tests.support import normal
from tests.tiny import write_llama

HAS_HARNESS = importlib.util.find_spec("lm_eval") is not None
ROWS = [
    {"question": q, "choices": c, "answer": i % 3}
    for i, (q, c) in enumerate(
        [
            ("abc de", ["ab", "cd", "ef"]),
            ("fed", ["a", "bb", "ccc"]),
            ("hg gh", ["hh", "gg", "ff"]),
            ("aa bb cc", ["dd", "ee", "ff"]),
            ("cab", ["bac", "abc", "cba"]),
            ("bed", ["deb", "ebd", "bde"]),
        ]
    )
]
TASK = """task: letters
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""


def call(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedcompress", "evaluate", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)


def likeliest(model: Path, adapter: Path | None) -> float:
    """Share of rows whose answer has the largest log-likelihood after the question."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    net, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    net = PeftModel.from_pretrained(net, adapter) if adapter else net
    right = 0
    for row in ROWS:
        scores = []
        for choice in row["choices"]:
            asked, whole = (
                tokenizer(t, return_tensors="pt")["input_ids"] for t in (row["question"], row["question"] + choice)
            )
            with torch.no_grad():
                logits = net(whole).logits[0, :-1].log_softmax(-1)
            said = whole[0, asked.shape[1] :]
            scores.append(float(logits[asked.shape[1] - 1 :].gather(1, said[:, None]).sum()))
        right += max(range(3), key=scores.__getitem__) == row["answer"]
    return right / len(ROWS)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_HARNESS, reason="lm-eval is optional: pip install 'fedcompress[evaluate]'")
@pytest.mark.timeout(300)
def test_scores_are_those_of_the_models(tmp_path: Path) -> None:
    model, initial, adapter = write_llama(tmp_path / "model"), tmp_path / "initial", tmp_path / "adapter"
    made = [sys.executable, "-m", "fedcompress", "template", str(model), "--adapter", "lora(r=4)", "-o", str(initial)]
    subprocess.run(made, check=True, capture_output=True)
    template = load_template(initial)
    export_adapter(adapter, template, normal(template.adapter.layout, 1, 1.0), {})
    (tmp_path / "tasks").mkdir()
    (tmp_path / "rows.json").write_text("\n".join(json.dumps(row) for row in ROWS))
    (tmp_path / "tasks" / "letters.yaml").write_text(TASK.format(rows=tmp_path / "rows.json"))
    done = call(adapter, "--model", model, "--tasks", "letters", "--include", tmp_path / "tasks", "--json")
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)["scores"]
    assert scores["base"]["letters"]["acc"] == pytest.approx(likeliest(model, None))
    assert scores["adapter"]["letters"]["acc"] == pytest.approx(likeliest(model, adapter))
    assert scores["adapter"]["letters"]["acc"] != scores["base"]["letters"]["acc"]

    refused = call(adapter, "--model", model, "--tasks", "digits", "--include", tmp_path / "tasks")
    assert (refused.returncode, refused.stderr.splitlines()[-1][:31]) == (2, "error: --tasks: digits: must be")


def test_without_the_package_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'fedcompress\[evaluate\]'"):
        run_tasks(tmp_path, None, ["arc_easy"])
    refused = call(tmp_path, "--model", tmp_path, "--tasks", "arc_easy")
    assert (refused.returncode, refused.stderr) == (
        2,
        f"error: --model: {tmp_path}: is for an adapter, which {tmp_path} is not\n",
    )


@pytest.mark.parametrize(
    ("folder", "tasks", "options", "said"),
    [
        ("", " , ", [], "--tasks:  , : must name a task"),
        ("some/model", "arc_easy", [], "FOLDER: some/model: must be a folder"),
        ("", "arc_easy", ["--dtype", "int8"], "--dtype: int8: must be one of"),
        ("", "arc_easy", ["--include", "nowhere"], "--include: nowhere: must be a folder with task files"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    folder: str, tasks: str, options: list[str], said: str, tmp_path: Path
) -> None:
    done = call(folder or tmp_path, "--tasks", tasks, *options)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: {said}")
