"""Every kind of source gives the same rows, and says where a bad one is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clients.data_sources import ENDINGS, SOURCES, make_absolute, parse_kind, parse_source
from clients.site import Data
from clients.training.data.rows import read_rows
from fedcompress.errors import ConfigError, MissingPackageError

ROWS = [{"text": f'row {i}, "caf\u00e9"\nand more', "label": "ab"[i % 2]} for i in range(60)]


def write_jsonl(folder: Path) -> str:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    return str(path)


def write_separated(folder: Path, ending: str, mark: str) -> str:
    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    lines = [mark.join(ROWS[0]), *(mark.join(quoted(value) for value in row.values()) for row in ROWS)]
    path = folder / f"rows{ending}"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return str(path)


def write_parquet(folder: Path) -> str:
    pyarrow = pytest.importorskip("pyarrow")
    path = folder / "rows.parquet"
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(ROWS), path)
    return str(path)


def dataset(rows: list[dict[str, Any]] = ROWS) -> Any:
    """With the label as datasets of the hub have it, a number with a name."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["b", "a"])})
    return datasets.Dataset.from_list(rows, features=features)


def write_folder(folder: Path) -> str:
    dataset().save_to_disk(str(folder / "saved"))
    return str(folder / "saved")


def write_split(folder: Path) -> str:
    datasets = pytest.importorskip("datasets")
    both = datasets.DatasetDict({"train": dataset(), "test": dataset(ROWS[:3])})
    both.save_to_disk(str(folder / "splits"))
    return f"{folder / 'splits'}:train"


def write_function(folder: Path) -> str:
    (folder / "site_rows.py").write_text(
        f"ROWS = {ROWS!r}\n"
        "def given(part):\n    yield from ROWS if part == 'train' else ROWS[:1]\n"
        "def broken(part):\n    yield {'text': 'x', 'label': 'a'}\n    raise ValueError('SECRET')\n"
        "def wrong(part):\n    return [{'text': 'x', 'label': 'a'}, ['SECRET']]\n"
        "number = 3\n"
    )
    return "site_rows:given"


WRITERS: dict[str, Callable[[Path], str]] = {
    "jsonl": write_jsonl,
    "csv": lambda folder: write_separated(folder, ".csv", ","),
    "tsv": lambda folder: write_separated(folder, ".tsv", "\t"),
    "parquet": write_parquet,
    "folder": write_folder,
    "split": write_split,
    "function": write_function,
}


@pytest.fixture(autouse=True)
def _importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("site_rows", None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRITERS)
def test_all_sources_give_the_same_rows_and_the_same_cut(name: str, tmp_path: Path) -> None:
    text = WRITERS[name](tmp_path)
    found = list(parse_source(text, "train").rows())
    assert [dict(row.values) for row in found] == ROWS
    assert len({row.where for row in found}) == len(ROWS)
    data = Data(train=text, heldout_share=0.3)
    plain = Data(train=write_jsonl(tmp_path), heldout_share=0.3)
    for part in ("train", "heldout"):
        ours = [row.values["text"] for row in read_rows(data, part)]
        assert ours == [row.values["text"] for row in read_rows(plain, part)]
        assert 0 < len(ours) < len(ROWS)
    assert parse_source(text, "train").stamp() == parse_source(text, "train").stamp()
    assert (parse_source(text, "train").size() > 0) == (name != "function")


def test_kinds_are_told_apart() -> None:
    texts = {
        "a/b.jsonl": "jsonl",
        "b.CSV": "csv",
        "b.tsv": "csv",
        "x.parquet": "parquet",
        "saved": "folder",
        "data/saved:train": "folder",
        "hf:a/b:train": "hub",
        "mine.rows:given": "function",
        "rows": "folder",
    }
    assert {text: parse_kind(text) for text in texts} == texts
    assert set(texts.values()) == set(SOURCES)
    assert set(ENDINGS.values()) < set(SOURCES)
    assert make_absolute("x.csv", Path("/base")) == "/base/x.csv"
    assert make_absolute("/else/x.csv", Path("/base")) == "/else/x.csv"
    assert make_absolute("saved:train", Path("/base")) == "saved:train", (
        "the form of a function; ./saved:train is a folder"
    )
    assert make_absolute("./saved:train", Path("/base")) == "/base/saved:train"
    assert make_absolute("hf:a/b", Path("/base")) == "hf:a/b"


def rows_in(tmp_path: Path, name: str, content: bytes, wants: tuple[tuple[str, ...], ...] = ()) -> list[Any]:
    (tmp_path / name).write_bytes(content)
    return list(read_rows(Data(train=str(tmp_path / name), heldout=str(tmp_path / name)), "train", wants))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"text,label\nx,a\nSECRET\n", "rows.csv:3: 1 values: must have 2"),
        (b'text,label\n"x\ny",a\nSECRET,b,c\n', "rows.csv:4: 3 values"),
        (b'text,label\nx,a\n"SECRET\n', "rows.csv:3: a record: must be a record in UTF-8, quoted well"),
        (b'text,label\nx,a\n"SECRET"y,a\n', "rows.csv:3: a record"),
        (b"text,label\nx,a\nSECRET\xe9,a\n", "rows.csv:3: a record: must be in UTF-8: save"),
        (b"text,text\nSECRET,a\n", "rows.csv:1: 2 columns: must be a header of distinct"),
    ],
)
def test_a_bad_record_of_a_csv(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        rows_in(tmp_path, "rows.csv", content)
    assert "SECRET" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lines_of_a_csv(tmp_path: Path) -> None:
    found = rows_in(tmp_path, "rows.csv", b'text,label\r\n"x\r\ny",a\r\n\r\nz,b\r\n')
    assert [(row.where, dict(row.values)) for row in found] == [
        ("rows.csv:2", {"text": "x\r\ny", "label": "a"}),
        ("rows.csv:5", {"text": "z", "label": "b"}),
    ]
    assert len(rows_in(tmp_path, "rows.csv", b"text\n" + b"x" * 300_000 + b"\n")[0].values["text"]) == 300_000


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("semicolons.csv", b"text;label\nx, y;a\nz;b\n"),
        ("quoted.csv", b'"text";"label"\n"x, y";"a"\n"z";"b"\n'),
        ("tabs.csv", b"text\tlabel\nx, y\ta\nz\tb\n"),
        ("bars.csv", b"text|label\r\nx, y|a\r\nz|b\r\n"),
        ("told.csv", b"\xef\xbb\xbfsep=;\r\ntext;label\r\nx, y;a\r\nz;b\r\n"),
        ("mark.csv", b'\xef\xbb\xbftext,label\n"x, y",a\nz,b\n'),
        ("comma-in-a-name.csv", b'text;label;"note, more"\nx, y;a;\nz;b;\n'),
        ("blank-first.csv", b"\n\ntext;label\nx, y;a\nz;b\n"),
        ("commas.tsv", b'text,label\n"x, y",a\nz,b\n'),
        ("empty-last.csv", b'text,label\n"x, y",a\nz,b\n,\n  \n'),
        ("rows.tsv", b"text\tlabel\nx, y\ta\nz\tb\n"),
        ("list.json", b'[{"text": "x, y", "label": "a"},\n {"text": "z", "label": "b"}]'),
        ("mark.jsonl", b'\xef\xbb\xbf{"text": "x, y", "label": "a"}\n{"text": "z", "label": "b"}\n'),
    ],
)
def test_files_as_spreadsheets_and_exports_write_them(tmp_path: Path, name: str, content: bytes) -> None:
    found = [{k: row.values[k] for k in ("text", "label")} for row in rows_in(tmp_path, name, content)]
    assert found == [{"text": "x, y", "label": "a"}, {"text": "z", "label": "b"}]


def test_an_index_of_pandas_is_a_column_as_pandas_reads_it(tmp_path: Path) -> None:
    content = b",text,label\n0,x,a\n1,y,b\n"
    assert [dict(row.values) for row in rows_in(tmp_path, "rows.csv", content)] == [
        {"Unnamed: 0": "0", "text": "x", "label": "a"},
        {"Unnamed: 0": "1", "text": "y", "label": "b"},
    ]
    trailing = rows_in(tmp_path, "trailing.csv", b"text,label,\nx,a,\n")
    assert dict(trailing[0].values) == {"text": "x", "label": "a", "Unnamed: 2": ""}


def test_a_delimiter_that_site_toml_names(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text#label\nx,y#a\n")
    found = list(read_rows(Data(train=str(path), heldout=str(path), delimiter="#"), "train"))
    assert dict(found[0].values) == {"text": "x,y", "label": "a"}
    with pytest.raises(ConfigError, match=r"data.delimiter: '##': must be one character"):
        Data(train=str(path), delimiter="##")


def test_a_name_with_blanks_keeps_them_and_is_named_where_it_is_wanted(tmp_path: Path) -> None:
    """Names are in the hash that cuts rows into two parts: reading them otherwise would move rows."""
    content = b"text, label\nx,a\n"
    assert list(rows_in(tmp_path, "rows.csv", content)[0].values) == ["text", " label"]
    with pytest.raises(ConfigError, match=r"the column ' label': must be 'label', without blanks around it"):
        rows_in(tmp_path, "rows.csv", content, (("text", "label"),))
    assert rows_in(tmp_path, "rows.csv", content, (("text", " label"),))


@pytest.mark.parametrize("delimiter", ["\n", "\r", '"'])
def test_what_cannot_be_a_delimiter(tmp_path: Path, delimiter: str) -> None:
    (tmp_path / "rows.csv").write_text("text\n")
    with pytest.raises(ConfigError, match=r"data.delimiter: .*no quote and no line end"):
        Data(train=str(tmp_path / "rows.csv"), delimiter=delimiter)


def test_another_encoding_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rows.csv: UTF-16: must be UTF-8"):
        rows_in(tmp_path, "rows.csv", "text,label\nx,a\n".encode("utf-16"))


def test_columns_are_checked_before_anything_else(tmp_path: Path) -> None:
    wants = (("messages",), ("prompt", "completion"))
    with pytest.raises(ConfigError) as caught:
        rows_in(tmp_path, "rows.csv", b"question,answer\nSECRET,b\n", wants)
    assert str(caught.value) == (
        "data.heldout: rows.csv:2: ['answer', 'question']: must have 'messages', or 'prompt' and 'completion'; "
        "other names are told under [data] in site.toml"
    ).replace("heldout", "train")
    assert rows_in(tmp_path, "rows.csv", b"prompt,x,completion\n1,2,3\n", wants)


def test_a_file_without_a_header_tells_nothing_of_its_first_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"2 columns, which are not named") as caught:
        rows_in(tmp_path, "rows.csv", b"the SECRET pain,a\nx,b\n", (("text", "label"),))
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("site_rows:broken", "site_rows:broken: failed after row 1: ValueError"),
        ("site_rows:wrong", "site_rows:wrong:2: list: must be a mapping"),
        ("site_rows:none", "must be a function of site_rows"),
        ("site_rows:number", "must be a function of site_rows"),
        ("no_such_module:given", "can be imported: ModuleNotFoundError"),
    ],
)
def test_a_function_that_fails(tmp_path: Path, text: str, words: str) -> None:
    write_function(tmp_path)
    with pytest.raises(ConfigError, match=words) as caught:
        list(read_rows(Data(train=text), "train"))
    assert "SECRET" not in str(caught.value)


def test_a_function_is_called_with_the_part(tmp_path: Path) -> None:
    text = write_function(tmp_path)
    data = Data(train=text, heldout=text)
    assert [len(list(read_rows(data, part))) for part in ("train", "heldout")] == [60, 1]


@pytest.mark.parametrize("text", ["hf:squad", "hf:a/b/c/d", "hf:", "hf:a/b:x y"])
def test_hub_ids_are_checked_without_the_hub(text: str) -> None:
    with pytest.raises(ConfigError, match="must be hf:organisation/name"):
        Data(train=text)


@pytest.mark.filterwarnings("ignore")
def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, subset: str | None, *, split: str) -> Any:
        asked.append((name, subset, split))
        if name == "a/none":
            raise FileNotFoundError("no such data set")
        return dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [dict(r.values) for r in parse_source("hf:a/b", "train").rows()] == ROWS
    assert parse_source("hf:a/b", "heldout").stamp() == parse_source("hf:a/b", "train").stamp() != ""
    assert parse_source("hf:a/b", "train").size() > 1000
    list(parse_source("hf:a/b/c:test[:10%]", "train").rows())
    assert asked == [("a/b", None, "train"), ("a/b", "c", "test[:10%]")]
    with pytest.raises(ConfigError, match=r"data.train: hf:a/none: must be a data set of the hub"):
        list(parse_source("hf:a/none", "train").rows())


@pytest.mark.filterwarnings("ignore")
def test_splits_of_a_saved_data_set(tmp_path: Path) -> None:
    write_split(tmp_path)
    with pytest.raises(ConfigError, match="must name a split of"):
        Data(train=str(tmp_path / "splits"))
    with pytest.raises(ConfigError, match="one of the splits"):
        Data(train=f"{tmp_path / 'splits'}:none")
    assert len(list(parse_source(f"{tmp_path / 'splits'}:test", "train").rows())) == 3
    (tmp_path / "splits" / "dataset_dict.json").write_text("[]")
    with pytest.raises(ConfigError, match="must be a data set that save_to_disk wrote"):
        Data(train=f"{tmp_path / 'splits'}:test")


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_what_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"data.train: .*must be an existing file"):
        Data(train=str(tmp_path / name))
    with pytest.raises(ConfigError, match="must be an existing file that ends in"):
        Data(train=str(tmp_path))


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(ConfigError, match="must be a parquet file: ArrowInvalid") as caught:
        rows_in(tmp_path, "rows.parquet", b"SECRET")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(("module", "text"), [("pyarrow", "x.parquet"), ("datasets", "hf:a/b")])
def test_a_package_that_is_absent(module: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(MissingPackageError, match=rf"package {module}: .*pip install 'fedcompress\[data\]'"):
        list(parse_source(make_absolute(text, tmp_path), "train").rows())
