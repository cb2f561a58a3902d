"""What every row of the table of adapters keeps: sites agree, merging is as exact as it says, stock PEFT reads it.

A site here is made ready by what makes it ready in a run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file

from fedcompress.adapters import ADAPTERS, load_template, parse_adapter
from fedcompress.adapters.base_model import BaseModel, build_base
from fedcompress.adapters.constants import INITIAL_FACTOR_SUFFIX, constants_digest
from fedcompress.adapters.table import LINEAR, REFUSED
from fedcompress.config.adapter_fields import check_adapter_config
from fedcompress.config.objective import CausalLM, Classification, Objective, Seq2SeqLM
from fedcompress.errors import ConfigError, MismatchError
from tests.unit.adapters import sites
from tests.unit.adapters.sites import Run, effective, error, outputs, put, run_of, trained

pytestmark = pytest.mark.filterwarnings("ignore")  # peft and bitsandbytes say much

CALLS = {
    "bone": "r=4",
    "boft": "boft_block_size=4",
    "c3a": "block_size=16",
    "fourierft": "n_frequency=50",
    "gralora": "r=4",
    "hira": "r=4",
    "hra": "r=4",
    "layers": "k=1",
    "subspace": "rank=4",
    "mask": "kind=lift,rank=4,density=0.05",
    "miss": "r=4",
    "oft": "oft_block_size=8",
    "prefix-tuning": "num_virtual_tokens=3",
    "prompt-tuning": "num_virtual_tokens=3",
    "pvera": "r=8",
    "randlora": "r=4",
    "road": "group_size=8",
    "shira": "r=2",
    "tinylora": "u=4",
    "trainable-tokens": "token_indices=5+6+7",
    "uni-lora": "theta_d_length=64",
    "vb-lora": "vector_length=16,num_vectors=32",
    "vera": "r=8",
    "waveft": "n_frequency=50",
}
MORE = [
    "corda(corda_method=ipm,use_rslora=true)",
    "eva(rho=2.0,r=4)",
    "lora(rank_pattern=q_proj:16+down_proj:2,alpha_pattern=q_proj:4)",
    "mask(kind=random,r=2)",
    "mask(kind=sara,r=2)",
    "pissa(r=4,rank_pattern=q_proj:2+up_proj:6,alpha_pattern=q_proj:5+k_proj:3)",
    "pissa(r=4,use_dora=true)",
    "pissa(r=4,use_rslora=true,rank_pattern=q_proj:2,alpha_pattern=q_proj:5)",
    "olora(r=4,use_rslora=true)",
    "full(targets=mlp+norm)",
    "layers(k=2,always=embed_tokens+lm_head)",
    "subspace(rank=8,basis=dct,targets=q_proj+down_proj)",
    "randlora(r=4,freeze=randlora_gamma)",
    "vera(r=8,freeze=vera_lambda_d)",
]
TEXTS = [" ".join(f"w{(7 * i + 3 * j + i * j) % 61 + 3}" for j in range(12)) for i in range(24)]
FUNCTIONS = ("prompt-tuning", "prefix-tuning", "beft")  # PEFT does not merge these into the base


def call_of(name: str) -> str:
    return f"{name}({CALLS[name]})" if name in CALLS else name


ALL = [call_of(name) for name in ADAPTERS] + MORE


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return sites.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose rows are whole blocks of 4-bit values."""
    return sites.llama(tmp_path_factory.mktemp("wide"), 64)


def made(folder: Path, base: Path, call: str, objective: Objective | None = None) -> Run:
    needs = ADAPTERS[call.partition("(")[0]].start == "texts"
    return run_of(folder, base, call, objective or CausalLM(), **({"texts": TEXTS} if needs else {}))


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("call", ALL)
def test_a_round_in_short(call: str, base: Path, wide: Path, tmp_path: Path) -> None:
    """Equal templates; sites start as stock PEFT starts; what is merged and exported is what sites compute."""
    name = call.partition("(")[0]
    model = wide if ADAPTERS[name].quantization else base
    run, again = made(tmp_path / "a", model, call), made(tmp_path / "b", model, call)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    template = load_template(run.folder)
    assert template.adapter.layout == run.template.adapter.layout
    assert template.constants == constants_digest(run.constants) == again.template.constants
    assert list(template.adapter.tensors) == sorted(template.adapter.tensors)
    check_adapter_config(json.dumps(dict(template.adapter.config)))  # as sites do

    site, objective = run.site(), template.objective
    start = outputs(site.model, objective)
    stock = run.stock(tmp_path / "start", template.adapter.tensors)
    assert float((outputs(stock, objective) - start).abs().max()) < 2e-5

    merged = run.merge([trained(run, k) for k in (1, 2)])
    put(site, merged)
    ours = outputs(site.model, objective)
    assert float((ours - start).abs().max()) > 1e-3
    stock = run.stock(tmp_path / "out", merged)
    assert float((outputs(stock, objective) - ours).abs().max()) < 2e-5


def weights_of(run: Run, site: Any, state: sites.Tensors) -> dict[str, Any]:
    """Weights that result, or outputs where PEFT does not merge."""
    if run.spec.name not in FUNCTIONS:
        return effective(site, state)
    put(site, state)
    return {"outputs": outputs(site.model, run.template.objective).double()}


def merge_error(run: Run, site: Any, states: list[sites.Tensors], scale: float) -> float:
    """Of updates that are scaled down."""
    start = run.template.adapter.tensors
    scaled = [{n: (start[n] + np.float32(scale) * (s[n] - start[n])) for n in start} for s in states]
    found = [weights_of(run, site, s) for s in scaled]
    return error(weights_of(run, site, run.merge(scaled)), found, weights_of(run, site, start))


EXACT = [c for c in ALL if ADAPTERS[c.partition("(")[0]].merge == LINEAR or "freeze=" in c]


@pytest.mark.parametrize("call", [c for c in EXACT if c != "beft"])
def test_linear_rows_merge_exactly(call: str, base: Path, tmp_path: Path) -> None:
    run = made(tmp_path, base, call)
    assert merge_error(run, run.site(), [trained(run, k) for k in (1, 2)], 1.0) < 1e-5


def test_biases_merge_exactly(base: Path, tmp_path: Path) -> None:
    """PEFT does not merge them into a base that has none; they are what they are."""
    run = made(tmp_path, base, "beft")
    states = [trained(run, k) for k in (1, 2)]
    merged = run.merge(states)
    for name, value in merged.items():
        assert np.allclose(value, (states[0][name] + states[1][name]) / 2, atol=1e-7)


@pytest.mark.parametrize("call", [c for c in ALL if c not in EXACT and not c.startswith("loftq")])
def test_other_rows_miss_in_the_second_order(call: str, base: Path, tmp_path: Path) -> None:
    """Half the updates, a quarter of the error: half of it relative to the change."""
    run = made(tmp_path, base, call)
    states, site = [trained(run, k) for k in (1, 2)], run.site()
    fine = 128 if call.startswith(("adalora", "uni-lora", "vb-lora")) else 64
    coarse, half = merge_error(run, site, states, 2 / fine), merge_error(run, site, states, 1 / fine)
    assert 0 < half < 0.2
    assert 1.6 < coarse / half < 2.4


@pytest.mark.parametrize("call", ["pissa(r=4)", "olora(r=4)", "corda(r=4)", "ffa-lora(r=4)", "mica(r=4)", "mask(r=2)"])
def test_a_site_with_other_constants_is_sent_them(call: str, base: Path, tmp_path: Path) -> None:
    run = made(tmp_path / "run", base, call)
    objective = CausalLM()
    if call.startswith("mask"):  # another precision, where another mask would be chosen
        other = BaseModel(path=base, dtype="bfloat16")
        site = run.site(other)
        from peft import get_peft_model_state_dict

        own = get_peft_model_state_dict(site.model, save_embedding_layers=False)
        assert all(np.array_equal(own[n].numpy(), v) for n, v in run.constants.items())
        return
    if any(n.endswith(INITIAL_FACTOR_SUFFIX) for n in run.constants):
        with pytest.raises(MismatchError, match="it must be sent them"):
            run.site(sent=False)
    site = run.site()
    stock = run.stock(tmp_path / "out", run.template.adapter.tensors)
    assert float((outputs(stock, objective) - outputs(site.model, objective)).abs().max()) < 2e-5
    (run.folder / "constants.safetensors").write_bytes((tmp_path / "out/adapter_model.safetensors").read_bytes())
    if any(n.endswith(INITIAL_FACTOR_SUFFIX) for n in run.constants) or call.startswith("pissa"):
        with pytest.raises(MismatchError, match="what was sent is not what the run has"):
            run.site()


@pytest.mark.parametrize("call", ["vera(r=8)", "randlora(r=4)", "pvera(r=8)"])
def test_exports_hold_their_projections(call: str, base: Path, tmp_path: Path) -> None:
    run = made(tmp_path / "run", base, call)
    run.stock(tmp_path / "out", run.template.adapter.tensors)
    kind = call.partition("(")[0]
    path = tmp_path / "out/adapter_model.safetensors"
    saved = load_file(path)
    state = {n: v + 1 for n, v in run.template.adapter.tensors.items()}
    ours = outputs(run.stock(tmp_path / "out", state), CausalLM())
    for side in "AB":
        name = f"base_model.{kind}_{side}"
        assert any(np.array_equal(saved[name], v) for n, v in run.constants.items() if f"{kind}_{side}" in n)
    save_file({n: 2 * v if n == name else v for n, v in load_file(path).items()}, path)
    loaded = PeftModel.from_pretrained(build_base(run.base, CausalLM()), path.parent).eval()
    assert float((outputs(loaded, CausalLM()) - ours).abs().max()) > 1e-3


@pytest.mark.parametrize("call", ["fourierft(n_frequency=50)", "waveft(n_frequency=50)"])
def test_places_that_are_plain_attributes_count(call: str, base: Path, tmp_path: Path) -> None:
    run = made(tmp_path / "a", base, call)
    other = made(tmp_path / "b", base, call.replace(")", ",random_loc_seed=5)"))
    assert run.constants
    assert run.template.constants != other.template.constants
    site = run.site()
    for name, value in run.constants.items():
        assert np.array_equal(site.constants[name].numpy(), value)


@pytest.mark.slow
@pytest.mark.parametrize("call", [call_of(name) for name in ADAPTERS])
@pytest.mark.parametrize(("dtype", "quantization"), [("bfloat16", "none"), ("float32", "4bit"), ("float32", "8bit")])
def test_bases_of_other_precision(call: str, dtype: str, quantization: str, wide: Path, tmp_path: Path) -> None:
    """A row learns on them, or is refused in one line."""
    name = call.partition("(")[0]
    row = ADAPTERS[name]
    run = made(tmp_path, wide, call)
    base = BaseModel(path=wide, dtype=dtype, quantization=quantization)
    dora = name == "dora" and quantization == "8bit"
    lacks = quantization != "none" and (not row.quantized or dora)
    if lacks or (row.quantization and row.quantization != quantization):
        with pytest.raises(ConfigError, match=r"^model.quantization: ") as caught:
            run.site(base)
        assert "\n" not in str(caught.value)
        return
    if name == "ln-tuning" and dtype == "bfloat16":
        with pytest.raises(MismatchError, match=r"layernorm.*bfloat16 \[64\]: the run's is float32"):
            run.site(base)
        return
    site, data = run.site(base), sites.batch(CausalLM(), 5)
    site.model.train()
    site.model(**data).loss.backward()
    for tensor, parameter in site.parameters.items():
        assert parameter.grad is not None, tensor
        assert bool(torch.isfinite(parameter.grad).all()), tensor


@pytest.mark.parametrize(
    "call", ["lora(r=4)", "vera(r=8)", "ia3", "pissa(r=4)", "shira(r=2)", "lora(r=4,freeze=lora_A)"]
)
@pytest.mark.parametrize("head", ["mean-pool-linear", "stock"])
def test_classification_saves_its_head(call: str, head: str, base: Path, tmp_path: Path) -> None:
    objective = Classification(labels=("a", "b", "c"), head=head)
    run = made(tmp_path / "run", base, call, objective)
    heads = [t.name for t in run.template.adapter.layout.tensors if t.group == "head"]
    assert heads
    merged = run.merge([trained(run, k) for k in (1, 2)])
    site = run.site()
    put(site, merged)
    stock = run.stock(tmp_path / "out", merged)
    assert float((outputs(stock, objective) - outputs(site.model, objective)).abs().max()) < 1e-4


@pytest.mark.parametrize("call", ["lora(r=4)", "vera(r=8)", "miss(r=4)", "pissa(r=4)", "prompt-tuning", "eva(r=4)"])
def test_sequence_to_sequence(call: str, tmp_path: Path) -> None:
    base, objective = sites.t5(tmp_path / "t5"), Seq2SeqLM()
    run = made(tmp_path / "run", base, call, objective)
    merged = run.merge([trained(run, k) for k in (1, 2)])
    site = run.site()
    put(site, merged)
    stock = run.stock(tmp_path / "out", merged)
    assert float((outputs(stock, objective) - outputs(site.model, objective)).abs().max()) < 2e-5


def test_a_saved_module_travels_whole(base: Path, tmp_path: Path) -> None:
    run = made(tmp_path / "run", base, "lora(r=4,targets=q_proj,save=lm_head)")
    assert {t.group for t in run.template.adapter.layout.tensors} == {"lora_a", "lora_b", "head"}


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        ("lora(rank=4)", r"adapter.lora: rank: unknown key: must be one of"),
        ("lora(targets=nothing)", r"^adapter: LORA on \['nothing'\]: does not fit the model"),
        ("vera(targets=nothing)", r"^adapter: VERA on"),
        ("mask(kind=best)", r"adapter.mask.kind: best: must be one of"),
        ("mask(density=2)", r"adapter.mask.density: 2: must be"),
        ("mask(density=0.1,r=3)", r"adapter.mask.density: 0.1: must not be given together with r"),
        ("mask(r=40)", r"^adapter: SHIRA on .*does not fit the model"),
        ("lora(rank_pattern=7)", r"adapter.rank_pattern: 7: must be name:number"),
        ("lora(freeze=lora_)", r"trains nothing"),
        ("corda(corda_method=best)", r"adapter.corda.corda_method: best: must be kpm or ipm"),
        ("eva(rho=0.5)", r"^adapter.eva: .*rho"),
    ],
)
def test_what_does_not_fit_is_refused(call: str, rule: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rule) as caught:
        made(tmp_path, base, call)
    assert "\n" not in str(caught.value)


def test_texts_are_for_those_that_start_from_them(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="texts: 0 with eva: must be given"):
        run_of(tmp_path, base, "eva", CausalLM())
    with pytest.raises(ConfigError, match="texts: 24 with lora: are not for this adapter"):
        run_of(tmp_path, base, "lora", CausalLM(), texts=TEXTS)


def test_the_command_line_takes_texts(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fedcompress.cli.template import template

    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS) + "\n\n", encoding="utf-8")
    options = {"task": "causal-lm", "labels": "", "head": "stock", "revision": "", "seed": sites.SEED, "as_json": False}
    template(str(base), tmp_path / "out", adapter="eva(r=4)", texts=str(file), **options)
    assert "eva(r=4)" in capsys.readouterr().out
    assert load_template(tmp_path / "out").name == "eva"
    with pytest.raises(ConfigError, match=r"--texts: .*must be a readable file"):
        template(str(base), tmp_path / "out", adapter="eva(r=4)", texts=str(tmp_path / "none"), **options)


def test_eva_gives_ranks_of_their_own(base: Path, tmp_path: Path) -> None:
    run = made(tmp_path, base, "eva(r=4,rho=2.0)")
    config = run.template.adapter.config
    assert config["rank_pattern"]
    assert config["init_lora_weights"] is True
    assert all(not v.any() for n, v in run.template.adapter.tensors.items() if ".lora_B." in n)


def test_loftq_is_nearer_to_the_base_than_its_four_bits(wide: Path, tmp_path: Path) -> None:
    run = made(tmp_path, wide, "loftq(r=16)")
    four = BaseModel(path=wide, quantization="4bit")
    whole = outputs(build_base(BaseModel(path=wide), CausalLM()).eval(), CausalLM())
    plain = outputs(build_base(four, CausalLM()).eval(), CausalLM())
    ours = outputs(run.site(four).model, CausalLM())
    assert float((ours - whole).norm()) < 0.9 * float((plain - whole).norm())


@pytest.mark.parametrize("call", ["lora(r=4)", "ia3"])
def test_training_on_four_bits_after_an_evaluation_has_the_same_gradients(
    call: str, wide: Path, tmp_path: Path
) -> None:
    run, found = made(tmp_path, wide, call), []
    for evaluates in (False, True):
        site = run.site(BaseModel(path=wide, quantization="4bit"))
        put(site, {n: v + 0.1 for n, v in run.template.adapter.tensors.items()})
        if evaluates:
            outputs(site.model, CausalLM())
        site.model.train()
        site.model(**sites.batch(CausalLM(), 5)).loss.backward()
        found.append({n: p.grad for n, p in site.parameters.items()})
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], rtol=1e-3, atol=1e-5), name


def test_masks_are_of_the_weights_that_they_name(base: Path, tmp_path: Path) -> None:
    from fedcompress.adapters.masks import build_mask

    weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(0))
    sara, lift = (build_mask(weight, kind, 2, 4).bool() for kind in ("sara", "lift"))
    assert int(sara.sum()) == int(lift.sum()) == 2 * (24 + 32)
    assert float(weight[sara].abs().max()) <= float(weight[~sara].abs().min())
    left, values, right = torch.linalg.svd(weight)
    low = (left[:, :4] * values[:4]) @ right[:4]
    assert float(low[lift].abs().min()) >= float(low[~lift].abs().max()) - 1e-6
    run = made(tmp_path, base, "mask(kind=lift,density=0.05)")
    total = sum(64 * 32 * 3 + 32 * 32 * 2 + 16 * 32 * 2 for _ in range(2))
    assert abs(run.template.adapter.layout.numel / total - 0.05) < 0.03


def test_rows_are_named_and_refusals_say_why() -> None:
    for name in ADAPTERS:
        assert parse_adapter(name).row is ADAPTERS[name]
        assert ADAPTERS[name].paper
    for name, reason in REFUSED.items():
        assert name not in ADAPTERS
        with pytest.raises(ConfigError, match=r"is not averaged") as caught:
            parse_adapter(name)
        assert reason in str(caught.value)
