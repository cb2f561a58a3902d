"""Weights in the files that people have: pickled by torch, in shards, with buffers of integers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedcompress.adapters.kept_tensors import MAX_BYTES
from fedcompress.errors import ConfigError, LimitError, PayloadError, WireError
from fedcompress.files import decode_file, encode_file, inspect_file
from fedcompress.files.container import open_container
from fedcompress.files.manifest import parse_manifest
from fedcompress.files.merge import merge_adapters
from fedcompress.wire import digest_of, pack
from tests.unit.adapters import sites

TENSORS = {
    "encoder.weight": torch.linspace(-1, 1, 96).reshape(12, 8),
    "half.weight": torch.linspace(0, 3, 40, dtype=torch.bfloat16).reshape(4, 10),
    "embeddings.position_ids": torch.arange(512)[None],
    "mask": torch.tensor([True, False, True]),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "exact": torch.linspace(0, 1, 5, dtype=torch.float64),
    "count": torch.tensor(3),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDCOMPRESS_CACHE", str(tmp_path / "cache"))


def as_safetensors(folder: Path) -> Path:
    save_file(TENSORS, folder / "x.safetensors")
    return folder / "x.safetensors"


def as_torch(folder: Path) -> Path:
    torch.save(TENSORS, folder / "x.bin")
    return folder / "x.bin"


def as_checkpoint(folder: Path) -> Path:
    torch.save({"state_dict": TENSORS, "step": 3}, folder / "x.ckpt")
    return folder / "x.ckpt"


def as_shards(folder: Path) -> Path:
    names = {name: f"model-{i % 2 + 1:05d}-of-00002.safetensors" for i, name in enumerate(TENSORS)}
    for file in set(names.values()):
        save_file({n: TENSORS[n] for n in names if names[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


def as_torch_shards(folder: Path) -> Path:
    names = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(TENSORS)}
    for file in set(names.values()):
        torch.save({n: TENSORS[n] for n in names if names[n] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


def as_model(folder: Path) -> Path:
    save_file(TENSORS, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    "write", [as_safetensors, as_torch, as_checkpoint, as_shards, as_torch_shards, as_model], ids=lambda f: f.__name__
)
def test_every_form_is_restored_exactly(write: Callable[[Path], Path], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in")
    facts = encode_file(path, tmp_path / "x.fcu", codec="none")
    assert facts["parameters"] == 136, "buffers are kept, and are no parameters"
    decode_file(tmp_path / "x.fcu", tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert set(found) == set(TENSORS)
    for name, value in TENSORS.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
    assert inspect_file(path)["parameters"] == 136
    encode_file(path, tmp_path / "delta.fcu", base=path)
    decode_file(tmp_path / "delta.fcu", tmp_path / "again.safetensors", base=path)
    assert torch.equal(load_file(tmp_path / "again.safetensors")["encoder.weight"], TENSORS["encoder.weight"])


def test_a_model_with_a_buffer_of_positions(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertModel(BertConfig(vocab_size=30, **size))
    tensors = {**model.state_dict(), "embeddings.position_ids": torch.arange(512)[None]}  # as older versions saved it
    save_file(tensors, tmp_path / "model.safetensors")
    encode_file(tmp_path, tmp_path / "x.fcu", codec="int(bits=8)")
    decode_file(tmp_path / "x.fcu", tmp_path / "out.safetensors")
    assert torch.equal(load_file(tmp_path / "out.safetensors")["embeddings.position_ids"], torch.arange(512)[None])


def test_an_adapter_that_torch_has_pickled(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    base = sites.llama(tmp_path / "base")
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    model.save_pretrained(tmp_path / "adapter", safe_serialization=False)
    if not (tmp_path / "adapter" / "adapter_model.bin").exists():  # PEFT writes safetensors alone from some version on
        tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        torch.save(tensors, tmp_path / "adapter" / "adapter_model.bin")
        (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    assert inspect_file(tmp_path / "adapter")["parameters"] == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    encode_file(tmp_path / "adapter", tmp_path / "x.fcu", codec="none")
    decode_file(tmp_path / "x.fcu", tmp_path / "out")
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out").eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(stock(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.bin", b"no archive", "must be weights alone"),
        ("x.gguf", b"GGUF", "must end in .safetensors, or as what torch saves"),
        ("x.txt", b"text", "must end in .safetensors"),
    ],
)
def test_what_is_no_file_of_weights(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        encode_file(tmp_path / name, tmp_path / "out.fcu")


def test_a_pickle_that_holds_more_than_weights_is_not_read(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2), "path": Path("x")}, tmp_path / "x.bin")
    with pytest.raises(ConfigError, match=r"must be weights alone, as torch.load"):
        encode_file(tmp_path / "x.bin", tmp_path / "out.fcu")
    torch.save([torch.ones(2)], tmp_path / "list.bin")
    with pytest.raises(ConfigError, match="must be a state dict"):
        encode_file(tmp_path / "list.bin", tmp_path / "out.fcu")


def test_packed_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    save_file({"packed": torch.zeros(MAX_BYTES + 1, dtype=torch.uint8)}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=r"PATH.packed.dtype: U8: .*encode what is not quantised"):
        encode_file(tmp_path / "x.safetensors", tmp_path / "out.fcu")


def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(ConfigError, match="must be a file beside it"):
        encode_file(tmp_path, tmp_path / "out.fcu")


@pytest.mark.parametrize("budget", ["64KB", "64 KiB", "1 GiB", "0.001GB", "2mb", "1000 bytes"])
def test_sizes_as_people_write_them(budget: str, tmp_path: Path) -> None:
    save_file(
        {"w": torch.from_numpy(np.random.default_rng(0).standard_normal((64, 64), np.float32))},
        tmp_path / "x.safetensors",
    )
    facts = encode_file(tmp_path / "x.safetensors", tmp_path / "x.fcu", budget=budget)
    units = {"64KB": 64_000, "64 KiB": 65_536, "1 GiB": 1 << 30, "0.001GB": 10**6, "2mb": 2 * 10**6, "1000 bytes": 1000}
    assert facts["bytes"] < units[budget] + 400, "headers are not counted"


def test_kept_tensors_that_lie_are_refused(tmp_path: Path) -> None:
    import base64
    import zlib

    whole = {"format": "safetensors", "layout": [["w", [2], "float32", "other"]], "part": 0, "parts": 1, "after": ""}

    def section(kept: object, version: int = 2) -> bytes:
        return bytes([version]) + zlib.compress(json.dumps({**whole, "kept": kept}).encode())

    data = base64.b64encode(zlib.compress(bytes(8))).decode()
    bomb = base64.b64encode(zlib.compress(bytes(1 << 20))).decode()
    good = {"n": {"dtype": "I64", "shape": [1], "data": data}}
    wrong: list[tuple[object, type[Exception]]] = [
        ({"n": {"dtype": "F32", "shape": [2], "data": data}}, PayloadError),
        ({"n": {"dtype": "I64", "shape": [2], "data": data}}, PayloadError),
        ({"n": {"dtype": "I64", "shape": [1], "data": bomb}}, PayloadError),
        ({"n": {"dtype": "I64", "shape": [1 << 30], "data": data}}, LimitError),
        ({"n": {"dtype": "I64", "shape": [1], "data": base64.b64encode(bytes(20)).decode()}}, PayloadError),
        ({"n": {"dtype": "I64", "shape": [1], "data": "?"}}, PayloadError),
        ({"n": {"dtype": "I64", "shape": [1], "data": data[:-8]}}, PayloadError),
        ({"__metadata__": {"dtype": "I64", "shape": [1], "data": data}}, PayloadError),
        ({"n": {"dtype": "I64", "shape": [-1], "data": data}}, PayloadError),
        ([], PayloadError),
    ]
    assert parse_manifest(section(good)).kept["n"].data == bytes(8)
    for kept, error in wrong:
        with pytest.raises(error):
            parse_manifest(section(kept))
    with pytest.raises(PayloadError, match="must not be in version 1"):
        parse_manifest(section(good, version=1))


def test_a_kept_tensor_that_a_later_part_has_too_is_refused(tmp_path: Path) -> None:
    """The names of one part alone do not tell; a header's own key is no name of a tensor either."""
    save_file({"a": torch.ones(4, 4), "b": torch.ones(4, 4), "ids": torch.arange(3)}, tmp_path / "x.safetensors")
    encode_file(tmp_path / "x.safetensors", tmp_path / "x.fcu", codec="none", part_entries=16)
    container = open_container(tmp_path / "x.fcu")
    assert len(container.parts) == 2
    envelopes = [container.read(part) for part in container.parts]
    manifests = container.manifests
    for name, words in (("c", ""), ("b", "names a tensor that a part has, too"), ("__metadata__", "not as specified")):
        changed = replace(manifests[0], kept={name: manifests[0].kept["ids"]})
        first = pack(envelopes[0].header, (changed.to_section(), *envelopes[0].sections[1:]))
        follows = replace(manifests[1], after=digest_of(first).hex())
        second = pack(envelopes[1].header, (follows.to_section(), *envelopes[1].sections[1:]))
        (tmp_path / "y.fcu").write_bytes(first + second)
        if not words:
            assert list(open_container(tmp_path / "y.fcu").manifests[0].kept) == [name]
            continue
        with pytest.raises(WireError, match=words):
            open_container(tmp_path / "y.fcu")


@pytest.mark.parametrize("bits", [4, 8])
def test_a_checkpoint_of_few_bits_is_refused_however_small(bits: int, tmp_path: Path) -> None:
    """Its packed weights would be exact and their scales would not, so that the model would be another."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    base = sites.llama(tmp_path / "base")
    config = BitsAndBytesConfig(load_in_4bit=True) if bits == 4 else BitsAndBytesConfig(load_in_8bit=True)
    AutoModelForCausalLM.from_pretrained(base, quantization_config=config).save_pretrained(tmp_path / "few")
    with pytest.raises(ConfigError, match=r"are weights of few bits, .*encode the model that is not quantised"):
        encode_file(tmp_path / "few", tmp_path / "x.fcu")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("l.qweight", torch.ones(4, 4, dtype=torch.int32)),
        ("l.qzeros", torch.ones(4, 4, dtype=torch.int32)),
        ("l.weight_packed", torch.ones(4, 4, dtype=torch.int32)),
        ("l.weight", torch.ones(4, 4).to(torch.float8_e4m3fn)),
    ],
)
def test_weights_of_few_bits_by_others(name: str, value: torch.Tensor, tmp_path: Path) -> None:
    save_file({name: value, "l.scales": torch.ones(4)}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=rf"PATH.{name}.dtype: .*are weights of few bits"):
        encode_file(tmp_path / "x.safetensors", tmp_path / "x.fcu")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.gguf", b"GGUF" + bytes(80), "it is a GGUF file"),
        ("x.zip", b"PK\x03\x04" + bytes(80), "it is what torch has saved, or another zip archive"),
        ("x.json", b'{"a": 1}', "it is JSON"),
        ("README", b"# Title", "it is text"),
        ("weights", bytes(8) + b'{"w":' + bytes(80), "it is a safetensors file, whose name must end in .safetensors"),
    ],
)
def test_files_that_are_no_fcu_are_named_as_people_know_them(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"must be an .fcu file: {words}"):
        inspect_file(tmp_path / name)


def test_inspect_tells_of_kept_empty_and_foreign_tensors(tmp_path: Path) -> None:
    save_file({"w": torch.ones(4, 4), "ids": torch.arange(1000)}, tmp_path / "x.safetensors")
    facts = inspect_file(tmp_path / "x.safetensors")
    assert (facts["kept_tensors"], facts["kept_bytes"], facts["bytes"]) == (1, 8000, 64)
    encode_file(tmp_path / "x.safetensors", tmp_path / "x.fcu")
    assert inspect_file(tmp_path / "x.fcu")["kept_bytes"] == 8000
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    tensors = {"base_model.model.q.lora_A.weight": torch.zeros(0), "model.q.lora_B.weight": torch.ones(4, 2)}
    save_file(tensors, tmp_path / "a" / "adapter_model.safetensors")
    assert {"empty", "no-prefix"} <= notes_of(tmp_path / "a")


def test_a_budget_that_leaves_nothing_says_so(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(sites.llama(tmp_path / "base"))
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "a")
    facts = encode_file(tmp_path / "a", tmp_path / "x.fcu", budget="1B")
    assert facts["error"] == 1
    assert "nothing is left" in facts["note"]
    assert "note" not in encode_file(tmp_path / "a", tmp_path / "x.fcu", budget="2")


def notes_of(folder: Path) -> set[str]:
    return {note["code"] for note in inspect_file(folder)["worth_dropping"]}


HEADS = [
    ("SEQ_CLS", "ForSequenceClassification"),
    ("TOKEN_CLS", "ForTokenClassification"),
    ("QUESTION_ANS", "ForQuestionAnswering"),
]


@pytest.mark.parametrize(("task", "head"), HEADS)
@pytest.mark.parametrize("older", [False, True])
def test_heads_that_peft_trains_are_no_copies_of_the_base(task: str, head: str, older: bool, tmp_path: Path) -> None:
    import transformers
    from peft import LoraConfig, get_peft_model

    config = transformers.DistilBertConfig(vocab_size=30, dim=16, hidden_dim=24, n_layers=1, n_heads=2)
    torch.manual_seed(0)
    base = getattr(transformers, f"DistilBert{head}")(config)
    model = get_peft_model(base, LoraConfig(task_type=task, target_modules=["q_lin"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "a")
    trained = {n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n}
    assert trained, "PEFT trains a head"
    if older:  # as versions wrote it that trained the head all the same
        path = tmp_path / "a" / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "modules_to_save": None}))
    assert "not-trainable" not in notes_of(tmp_path / "a")


def test_a_copy_of_the_base_is_still_noted(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(sites.llama(tmp_path / "base"))
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    assert "not-trainable" in notes_of(tmp_path / "a")


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: "_orig_mod." + name,
        lambda name: "module." + name,
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda name: name.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn."),
        lambda name: name.replace("base_model.model.", ""),
        lambda name: name.replace("base_model.model.", "module."),
    ],
)
def test_names_of_wrapped_models_are_those_of_the_model(rename: Callable[[str], str], tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    base = sites.llama(tmp_path / "base")
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    for seed, name in enumerate(("one", "other")):
        torch.manual_seed(seed)
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / name)
    merge_adapters([tmp_path / "one", tmp_path / "other"], tmp_path / "expected")
    file = tmp_path / "one" / "adapter_model.safetensors"
    save_file({rename(name): value for name, value in load_file(file).items()}, file)
    merge_adapters([tmp_path / "one", tmp_path / "other"], tmp_path / "found")
    ids, logits = torch.arange(12)[None], {}
    for name in ("expected", "found"):
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / name).eval()
        with torch.no_grad():
            logits[name] = model(ids).logits
    assert torch.equal(logits["found"], logits["expected"])


def test_names_with_another_prefix_are_refused(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(sites.llama(tmp_path / "base"))
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    save_file({name.replace("base_model.model.", "base_model.net."): v for name, v in load_file(file).items()}, file)
    with pytest.raises(ConfigError, match=r"its name: must begin with base_model.model."):
        merge_adapters([tmp_path / "a"], tmp_path / "out")
