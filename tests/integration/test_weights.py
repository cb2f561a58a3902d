"""Runs that train weights of the base: on real ranks, and through the coordinator to a model of stock transformers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from clients import worker_client
from clients.site import SiteConfig
from clients.training.job import DELTA
from fedcompress.adapters import load_template, parse_adapter
from fedcompress.adapters.base_model import BaseModel
from fedcompress.adapters.full.template import write_weights_template
from fedcompress.config.objective import CausalLM
from fedcompress.config.run_config import parse_run_config
from fedcompress.config.train_task import TrainTask
from fedcompress.errors import ConfigError
from fedcompress.storage.tensor_file import open_tensor_file
from server.commands import export
from server.coordinator import Coordinator
from server.transport.base import Incoming
from tests.integration.test_training import Place, far
from tests.site_support import WorkerSite
from tests.tiny import write_llama, write_rows

pytestmark = pytest.mark.timeout(300)


def template_of(folder: Path, adapter: str) -> Path:
    out = folder / f"template-{adapter.replace('(', '-').rstrip(')')}"
    if not out.exists():
        base = BaseModel(path=folder / "model")
        write_weights_template(out, base, CausalLM(), parse_adapter(adapter))
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("weights")
    write_llama(folder / "model", layers=4)
    write_rows(folder / "train.jsonl", 40)
    write_rows(folder / "heldout.jsonl", 13, seed=1)
    return Place(folder)


def trained(place: Place, adapter: str, engine: str, **more: Any) -> dict[str, Any]:
    """One job on real ranks, and the update that it wrote."""
    template = template_of(place.folder, adapter)
    found = place.run_all(engine, [{}], template=template, **more)[0]
    assert "error" not in found["metrics"], found
    update = open_tensor_file(place.folder / "out" / DELTA, load_template(template).adapter.layout)
    return {**found, "trained": dict(update)}


@pytest.mark.parametrize(
    ("adapter", "engine"),
    [
        pytest.param("full", "zero_stage = 3", marks=pytest.mark.slow),
        pytest.param("full", 'kind = "accelerate"\nsharding = "fsdp2"', marks=pytest.mark.slow),
        pytest.param("subspace(rank=4)", "zero_stage = 3", marks=pytest.mark.slow),
        pytest.param("layers(k=2)", "zero_stage = 3", marks=pytest.mark.slow),
        pytest.param("layers(k=2)", 'kind = "accelerate"\nsharding = "fsdp2"', marks=pytest.mark.slow),
    ],
)
def test_ranks_and_engines_change_nothing(place: Place, adapter: str, engine: str) -> None:
    """Two ranks with partitioned weights are one with whole ones, to rounding."""
    alone = trained(place, adapter, "zero_stage = 0", ranks=1)
    assert alone["losses"][-1] < alone["losses"][0]
    found = trained(place, adapter, engine, ranks=2, micro=2)
    assert far(found["trained"], alone["trained"]) < 5e-3  # Adam divides by what rounding changes
    moved = {n for n, v in alone["trained"].items() if v.any()}
    assert moved == {n for n, v in found["trained"].items() if v.any()}
    if adapter.startswith("layers"):
        assert len({name.split(".")[2] for name in moved}) == 2


@pytest.mark.slow
def test_a_quantised_base_is_refused_with_the_reason(place: Place) -> None:
    template = template_of(place.folder, "full")
    found = place.run_all("zero_stage = 0", [{}], template=template, model='quantization = "4bit"')[0]
    assert "model.quantization: 4bit: weights of the base are trained" in found["metrics"]["error"]


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ("layers(k=5)", "adapter.layers.k: 5: must be at most 4, the layers of this model"),
        ("layers(k=0)", "adapter.layers.k: 0: must be a number of layers"),
        ("subspace(rank=33)", "adapter.subspace.rank: 33: must be at most the smaller side of"),
        ("subspace(basis=svd)", "adapter.subspace.basis: svd: must be one of"),
        ("full(rank=3)", "adapter.full: rank: unknown key"),
        ("full(targets=nothing)", "adapter: full: trains nothing"),
    ],
)
def test_what_does_not_fit_is_refused(place: Place, adapter: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"^[^\n]*$") as caught:
        template_of(place.folder, adapter)
    assert message in str(caught.value)


class Local:
    """Sites whose workers are asked one after the other, without Flower between."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        self._open: list[tuple[int, TrainTask, bytes]] = []

    def nodes(self) -> list[int]:
        return list(range(len(self._files)))

    def send(self, node: int, task: TrainTask, payload: bytes, signature: str = "") -> int:
        self._open.append((node, task, payload))
        return 0

    def receive(self, timeout: float) -> Iterable[Incoming]:
        if not self._open:
            return []
        node, task, payload = self._open.pop(0)
        site = SiteConfig.load(self._files[node])
        reply, replayed = worker_client.run_round(self._files[node], site, task, payload, print)
        return [Incoming(node, {"status": "ok", "site": site.name, "replayed": replayed}, reply)]

    def forget(self, nodes: Iterable[int]) -> None:
        gone = set(nodes)
        self._open = [entry for entry in self._open if entry[0] not in gone]


def run_config(folder: Path, template: Path, **more: Any) -> Any:
    options = {"initial-adapter": str(template), "state-dir": str(folder / "state"), "run": "r", "rounds": 2}
    training = {
        "steps": 4,
        "batch-size": 8,
        "lr": 1e-2,
        "max-length": 32,
        "optimizer": "adamw",
        "min-sites": 2,
        "quorum": 1,
        "min-cohort": 1,
    }
    unsigned = {"rule": "mean", "require-signatures": False}
    return parse_run_config({**options, **training, **unsigned, **more})


CASES = [
    ("full", "none", "none"),
    ("layers(k=2)", "topk(density=0.2)|ternary", "int8"),
    ("subspace(rank=4,basis=dct)", "subspace(rank=4,basis=dct)", "subspace(rank=4,basis=dct)"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "codec", "downlink"), CASES)
def test_a_run_ends_in_a_model_of_stock_transformers(
    place: Place, tmp_path: Path, adapter: str, codec: str, downlink: str
) -> None:
    """Two rounds at two sites; what the folder holds is the base and the published state."""
    import torch
    from transformers import AutoModelForCausalLM

    template, model_path = template_of(place.folder, adapter), place.folder / "model"
    files = []
    for number, name in enumerate(("north", "south")):
        write_rows(tmp_path / f"{name}.jsonl", 24, seed=5 + number)
        files.append(tmp_path / f"{name}.toml")
        files[-1].write_text(
            f'[site]\nname = "{name}"\nstate_dir = "{name}"\n[model]\npath = {json.dumps(str(model_path))}\n'
            f'[data]\ntrain = "{name}.jsonl"\nheldout = "{name}.jsonl"\n[engine]\nranks = 1\nzero_stage = 0\n'
        )
    events: list[dict[str, Any]] = []
    config = run_config(tmp_path, template, codec=codec, **{"downlink-codec": downlink})
    coordinator = Coordinator(config, Local(files), events.append)
    try:
        folder = coordinator.run()
    finally:
        sites = [WorkerSite(file, template) for file in files]
        for site in sites:
            site._stop()
        sites[0].stop()  # waits for the processes of all
    again = tmp_path / "again"
    options = {"state": config.state_dir, "template": str(template), "out": str(again)}
    assert export.run(export.Options(**options)) == 0
    first, second = ({p.name: p.read_bytes() for p in f.iterdir() if p.suffix != ".md"} for f in (folder, again))
    assert first == second, "all but the card, which knows the run's settings only where a command has begun it"
    with pytest.raises(ConfigError, match="this one trains weights"):
        export.run(export.Options(**options | {"out": str(tmp_path / "m")}, merged=True, model=str(model_path)))
    quality = [e["loss"] for e in events if e["event"] == "quality"]
    assert quality[-1] < quality[0]
    base, model = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (model_path, folder))
    state = coordinator.published.state
    with torch.no_grad():
        start = base(torch.arange(12)[None]).logits
        for name, parameter in base.named_parameters():
            if name in state:
                parameter += torch.from_numpy(state[name])
        wanted, found = (m(torch.arange(12)[None]).logits for m in (base, model))
    assert float((wanted - found).abs().max()) < 1e-5
    assert float((start - found).abs().max()) > 1e-3
    if codec.startswith("subspace"):  # a coefficient for each row and basis vector, of two sites
        rows = sum(t.shape[0] for t in coordinator.layout.tensors)
        sizes = [e["uplink_bytes"] for e in events if e["event"] == "round"]
        assert all(size < 2 * (4 * 4 * rows + 2000) for size in sizes)


def test_a_subspace_needs_its_codec(place: Place, tmp_path: Path) -> None:
    template = template_of(place.folder, "subspace(rank=4)")
    with pytest.raises(ConfigError, match=r"codec: int8: must be subspace\(rank=4,basis=random\)"):
        Coordinator(run_config(tmp_path, template, codec="int8"), Local([]), lambda event: None)
