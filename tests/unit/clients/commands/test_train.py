"""``site train --local``: each round starts where the last one ended, and options are checked before that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.commands.train import Options, View, _rounds, quality, run
from fedcompress.adapters import Adapter
from fedcompress.adapters.template import Template, save_template
from fedcompress.config.objective import Classification
from fedcompress.errors import ConfigError
from fedcompress.proto.v1 import worker_pb2
from tests.support import normal
from tests.unit.clients.worker.test_service import LAYOUT, Worker

TEMPLATE = Template(
    adapter=Adapter(config={"peft_type": "LORA", "r": 4}, layout=LAYOUT, tensors=normal(LAYOUT, 0)),
    objective=Classification(labels=("a", "b")),
)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path, 1)
    yield worker
    worker.server.stop(0).wait()
    worker.session.close()
    worker.counters.close()


def options(**changes: Any) -> Options:
    return Options(**{"site": "site.toml", "template": "t", "out": "o", "local": True, "rounds": 2, **changes})


def test_rounds_go_on_from_the_result_of_the_last(worker: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    rank, notes = worker.rank(), list[tuple[int, str]]()
    view = View(options(steps=1))

    def note(round_: int, progress: worker_pb2.Progress) -> None:
        notes.append((round_, progress.phase))
        view.note(round_, progress)

    with view:
        found, state = _rounds(options(steps=1), TEMPLATE, worker.file, worker.site, note)
    assert len(found) == 3, "the last one only evaluates"
    for name, value in TEMPLATE.adapter.tensors.items():
        assert np.allclose(state[name], value + 0.2, atol=1e-5)
    assert {(1, "train"), (2, "train"), (3, "train")} <= set(notes)
    assert quality(found[0]) == {"loss": 0.25, "accuracy": 0.5, "predictions": 2}
    assert found[0]["examples"] == 7
    assert "settle" not in {phase for _, phase in notes}, "nothing is given back: each result was taken over"
    assert "round 2/2: train loss 0.2500 step 1/1" in capsys.readouterr().err
    rank.die()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"local": False}, "--local"),
        ({"rounds": 0}, "--rounds: 0"),
        ({"steps": 0}, "--steps: 0"),
        ({"lr": -1.0}, "task.lr"),
        ({"optimizer": "nonsense"}, "optimizer"),
        ({"schedule": "nonsense"}, "schedule"),
    ],
)
def test_wrong_options_start_nothing(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text("")
    file = tmp_path / "site.toml"
    file.write_text('[site]\nname="n"\nstate_dir="state"\n[model]\npath="model"\n[data]\ntrain="rows.jsonl"\n')
    save_template(tmp_path / "t", TEMPLATE, {})
    with pytest.raises(ConfigError, match=words):
        run(options(**{"site": str(file), "template": str(tmp_path / "t"), **changes}))
    assert not (tmp_path / "state").exists()
