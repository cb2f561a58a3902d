"""A site's training against plain PEFT and Hugging Face's Trainer, and against itself on other ranks and engines."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.site import Data
from clients.training.data.examples import load_examples, picks_for_steps
from clients.training.job import Job
from clients.training.tasks.language import CausalTask
from clients.training.trainer import derive_training_seed
from fedcompress.adapters import load_adapter, load_template, parse_adapter
from fedcompress.adapters.base_model import BaseModel, load_tokenizer
from fedcompress.adapters.template_builder import write_template
from fedcompress.config.objective import CausalLM, objective_json
from fedcompress.config.train_task import TrainTask
from tests.site_support import read_trained
from tests.tiny import write_llama, write_rows

pytestmark = pytest.mark.timeout(300)  # of processes that import torch on two busy cores
SCRIPT = Path(__file__).with_name("site_ranks.py")
STEPS, LR = 8, 1e-2


@dataclass
class Place:
    """A folder with a model, rows and a template; ``data`` is more of that section of site.toml."""

    folder: Path
    data: str = ""

    def task(self, template: Path, **changes: Any) -> TrainTask:
        made = load_template(template)
        fields: dict[str, Any] = {
            "run": "test",
            "round": 1,
            "version": 0,
            "steps": STEPS,
            "batch_size": 8,
            "lr": LR,
            "optimizer": "adamw",
            "codec": "none",
            "feedback": 1.0,
            "schedule": "linear(warmup=2)",
            "max_length": 32,
            "objective": objective_json(made.objective),
            "seed": 0,
            "adapter_config": json.dumps(made.adapter.config, sort_keys=True),
            "layout": made.adapter.layout.to_json(),
            "freeze": made.freeze,
            "constants": made.constants,
            "tokenizer": made.tokenizer,
        }
        return TrainTask(**{**fields, **changes})

    def template(self, adapter: str = "lora(r=4,targets=all-linear)") -> Path:
        out = self.folder / f"template-{adapter.partition('(')[0]}"
        if not out.exists():
            base = BaseModel(path=self.folder / "model")
            write_template(out, base, CausalLM(), parse_adapter(adapter), seed=0)
        return out

    def run(
        self, engine: str, *, ranks: int = 1, micro: int = 8, model: str = "", template: Path | None = None, **task: Any
    ) -> dict[str, Any]:
        """One job on real ranks; returns losses, metrics and what was trained."""
        out = self.folder / "out"
        found = self.run_all(engine, [task], ranks=ranks, micro=micro, model=model, template=template)[0]
        if "error" not in found["metrics"]:
            used = template or self.template()
            found["trained"] = read_trained(used, out, load_template(used).adapter.layout)
        return found

    def run_all(
        self,
        engine: str,
        tasks: list[dict[str, Any]],
        *,
        ranks: int = 1,
        micro: int = 8,
        model: str = "",
        template: Path | None = None,
    ) -> list[dict[str, Any]]:
        """Several jobs, one after the other, on the same ranks."""
        template = template or self.template()
        site = self.folder / "site.toml"
        site.write_text(
            f'[site]\nname = "north"\nstate_dir = "state"\n[model]\npath = "model"\n{model}\n'
            f'[data]\ntrain = "train.jsonl"\nheldout = "heldout.jsonl"\n{self.data}\n'
            f"[engine]\nranks = {ranks}\n{engine}\n"
        )
        names = []
        for number, changes in enumerate(tasks):
            task = self.task(template, **changes)
            job = Job(task=task, published=template, constants=None, out=self.folder / "out", micro_batch=micro)
            path = self.folder / f"job-{number}.json"
            path.write_text(job.to_json())
            names.append(str(path))
        return _torchrun(ranks, [str(site), *names])


def _torchrun(ranks: int, args: list[str]) -> list[dict[str, Any]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={port}"]
    root = str(SCRIPT.parents[2])
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    done = subprocess.run(
        [*command, str(SCRIPT), *args], env=environment, capture_output=True, text=True, timeout=230, check=False
    )
    found = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert len(found) == len(args) - 1, done.stderr[-3000:]
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    write_llama(folder / "model")
    write_rows(folder / "train.jsonl", 40)
    write_rows(folder / "heldout.jsonl", 13, seed=1)
    return Place(folder)


@pytest.fixture(scope="module")
def alone(place: Place) -> dict[str, Any]:
    """One process, DeepSpeed, ZeRO-0: what all others are compared with."""
    return place.run("zero_stage = 0")


def far(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Largest difference of trained values, relative to the largest value."""
    return max(float(np.abs(ours[n] - theirs[n]).max()) for n in theirs) / max(
        float(np.abs(v).max()) for v in theirs.values()
    )


def test_one_site_and_codec_none_is_plain_peft_with_the_trainer(place: Place, alone: dict[str, Any]) -> None:
    """The same rows in the same order, schedule, clipping and optimizer: losses and weights agree."""
    import torch
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    template = place.template()
    task, model = place.task(template), AutoModelForCausalLM.from_pretrained(place.folder / "model")
    config = {k: v for k, v in load_adapter(template).config.items() if k not in ("auto_mapping", "inference_mode")}
    plain = get_peft_model(model, PeftConfig.from_peft_type(**config))
    start = {n: torch.from_numpy(v) for n, v in load_adapter(template).tensors.items()}
    assert not set_peft_model_state_dict(plain, start).unexpected_keys

    tokenizer = load_tokenizer(place.folder / "model")
    data = Data(train=str(place.folder / "train.jsonl"), heldout=str(place.folder / "heldout.jsonl"))
    causal = CausalTask(data, tokenizer, task.max_length)
    examples = load_examples(data, "train", causal)
    order = picks_for_steps(len(examples), task.batch_size, STEPS, derive_training_seed(task, "north", "order"))
    ordered = [examples[i] for batch in order for i in batch]

    class InOrder(Trainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(ordered)

    losses: list[float] = []

    class Keep(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                losses.append(logs["loss"])

    arguments = TrainingArguments(
        output_dir=str(place.folder / "trainer"),
        max_steps=STEPS,
        per_device_train_batch_size=task.batch_size // 2,
        gradient_accumulation_steps=2,
        learning_rate=LR,
        lr_scheduler_type="linear",
        warmup_steps=2,
        max_grad_norm=task.clip,
        weight_decay=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    trainer = InOrder(
        model=plain, args=arguments, train_dataset=ordered, data_collator=causal.batch, callbacks=[Keep()]
    )
    trainer.train()
    assert np.allclose(alone["losses"], losses[:STEPS], rtol=1e-5, atol=1e-5)
    assert alone["losses"][-1] < 0.97 * alone["losses"][0], "it has learnt nothing"
    from peft import get_peft_model_state_dict

    theirs = {n: v.detach().numpy() for n, v in get_peft_model_state_dict(plain).items()}
    assert far(alone["trained"], theirs) < 1e-4


@pytest.mark.parametrize(
    ("engine", "ranks", "micro"),
    [
        ("zero_stage = 2", 2, 2),
        ("zero_stage = 3", 2, 3),
        pytest.param('kind = "accelerate"\nsharding = "fsdp2"', 2, 2, marks=pytest.mark.slow),
        pytest.param("zero_stage = 2", 1, 2, marks=pytest.mark.slow),
        pytest.param("zero_stage = 1", 2, 4, marks=pytest.mark.slow),
        pytest.param('zero_stage = 3\noffload = "cpu"', 2, 4, marks=pytest.mark.slow),
        pytest.param('kind = "accelerate"', 1, 2, marks=pytest.mark.slow),
        pytest.param('kind = "accelerate"', 2, 2, marks=pytest.mark.slow),
    ],
)
def test_ranks_micro_batches_and_engines_change_nothing(
    place: Place, alone: dict[str, Any], engine: str, ranks: int, micro: int
) -> None:
    """Two ranks with half the rows each are one with all of them, to rounding."""
    found = place.run(engine, ranks=ranks, micro=micro)
    assert np.allclose(found["losses"], alone["losses"], rtol=2e-4), "each step's loss is of the whole batch"
    assert found["metrics"]["train_loss"] == pytest.approx(alone["metrics"]["train_loss"], rel=2e-4)
    assert far(found["trained"], alone["trained"]) < 2e-4
    for name in ("eval_correct", "eval_loss_sum", "eval_examples"):
        assert found["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-5)
    assert all(np.abs(v).sum() > 0 for v in found["trained"].values()), "a tensor was read empty"


def test_a_quantised_base_is_trained_on_a_cpu(tmp_path: Path) -> None:
    """QLoRA: NF4 weights, float32 factors, as plain PEFT has it."""
    write_llama(tmp_path / "model", width=64)
    write_rows(tmp_path / "train.jsonl", 40)
    write_rows(tmp_path / "heldout.jsonl", 13, seed=1)
    place = Place(tmp_path)
    four = place.run("zero_stage = 2", model='quantization = "4bit"', schedule="constant")
    whole = place.run("zero_stage = 2", schedule="constant")
    assert four["losses"][-1] < 0.97 * four["losses"][0]
    assert four["losses"][0] != whole["losses"][0], "the base was not quantised"
    assert np.allclose(four["losses"], whole["losses"], rtol=0.05)
    assert all(v.dtype == np.float32 for v in four["trained"].values())


def test_what_cannot_be_trained_is_said_with_its_place(place: Place) -> None:
    """And the ranks go on to the next job, which ends as if nothing had been."""
    good: dict[str, Any] = {}
    bad: list[dict[str, Any]] = [
        {"lr": 3e38, "schedule": "constant", "clip": 0.0},
        {"steps": 1, "schedule": "constant(warmup=4)"},
        {"tokenizer": "ab" * 32},
        {"layout": "[]"},
        {"constants": "cd" * 32},
        {"max_length": 1},
    ]
    first, *found, last = place.run_all("zero_stage = 2", [good, *bad, good])
    words = ["nan-loss|rows train.jsonl:", "nothing changed in 1 steps", "tokenizer", "trainable tensors", "constants"]
    words.append("train.jsonl:1")
    for result, word in zip(found, words, strict=True):
        assert any(w in result["metrics"].get("error", "") for w in word.split("|")), (word, result)
    assert first["losses"] == last["losses"]


@pytest.mark.slow
def test_a_deadline_stops_a_round_and_keeps_what_was_done(place: Place) -> None:
    found = place.run("zero_stage = 2", steps=100_000, deadline=0.5, schedule="constant")
    done = found["metrics"]["steps_done"]
    assert 1 <= done < 100_000
    assert any(np.abs(v).sum() > 0 for v in found["trained"].values())


@pytest.mark.slow
def test_fedprox_holds_a_site_back(place: Place, alone: dict[str, Any]) -> None:
    """Li et al. 2020: the larger mu is, the nearer a site stays to the published state."""
    start = load_adapter(place.template()).tensors
    free = far(alone["trained"], start)
    held = place.run("zero_stage = 2", correction="fedprox(mu=1000)", micro=2, clip=0.0)
    assert 0 < far(held["trained"], start) < 0.8 * free


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero_stage = 2", "zero_stage = 3"])
def test_a_site_with_a_smaller_rank_trains_some_components(place: Place, engine: str) -> None:
    """Two of four in a round, the other two in the next; the rest of the factors stays as it was published."""
    start = load_adapter(place.template()).tensors
    moved = []
    for round_ in (1, 2):
        found = place.run(f"{engine}\n[adapter]\nrank = 2", ranks=2, round=round_, rounds=2, schedule="constant")
        changed = {n: v != start[n] for n, v in found["trained"].items()}
        moved.append({n: c.any(1 if "lora_A" in n else 0) for n, c in changed.items()})
        assert all(c.sum() == 2 for n, c in moved[-1].items() if "lora_B" in n)
        assert all((c <= moved[-1][n.replace("lora_A", "lora_B")]).all() for n, c in moved[-1].items() if "lora_A" in n)
    assert all((moved[0][n] ^ moved[1][n]).all() for n in moved[0] if "lora_B" in n)


@pytest.mark.slow
def test_tokens_on_disk_change_nothing(place: Place, alone: dict[str, Any]) -> None:
    """Rank 0 writes them in the first job; the second reads them."""
    streaming = Place(place.folder, "streaming = true")
    found = streaming.run("zero_stage = 3", ranks=2, micro=3)
    assert far(found["trained"], alone["trained"]) < 2e-4
    store = place.folder / "state" / "tokens" / "train" / "meta.json"
    written = store.stat().st_mtime_ns
    assert streaming.run("zero_stage = 0")["losses"] == alone["losses"]
    assert store.stat().st_mtime_ns == written


@pytest.mark.slow
def test_packed_rows_on_two_ranks_are_those_on_one(place: Place) -> None:
    """Some blocks are one row and some several, so that ranks may have batches of both kinds."""
    packing = Place(place.folder, "packing = true")
    one = packing.run("zero_stage = 0")
    two = packing.run("zero_stage = 3", ranks=2, micro=2)
    assert far(two["trained"], one["trained"]) < 2e-4
    assert one["losses"][-1] < one["losses"][0]
    assert two["metrics"]["train_loss"] == pytest.approx(one["metrics"]["train_loss"], rel=2e-4)
    assert one["metrics"]["train_examples"] == 40, "rows count for a site, not blocks"


def test_packing_with_a_trained_prompt_is_refused(place: Place) -> None:
    packing = Place(place.folder, "packing = true")
    found = packing.run("zero_stage = 2", template=packing.template("prompt-tuning(num_virtual_tokens=3)"))
    assert "data.packing: true: must be false with this model or adapter" in found["metrics"]["error"]


@pytest.mark.slow
@pytest.mark.parametrize("option", ["gradient_checkpointing = true", 'attention = "eager"', "compile = true"])
def test_how_the_model_computes_changes_nothing(place: Place, alone: dict[str, Any], option: str) -> None:
    found = place.run("zero_stage = 2", model=option)
    assert np.allclose(found["losses"], alone["losses"], rtol=1e-5)
    assert far(found["trained"], alone["trained"]) < 2e-4


def test_a_correction_needs_whole_parameters(place: Place) -> None:
    found = place.run("zero_stage = 3", correction="fedprox")
    assert "task.correction: fedprox: must be none at a site with zero_stage = 3" in found["metrics"]["error"]
