"""The house as docs/architecture.md has it: shelves, sizes, no circles, tests that mirror the tree."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.repository.graph import PACKAGES, find_circle, imports, parse, sources
from tests.support import ROOT

MAX_MODULE, MAX_FUNCTION, MAX_CLASS = 500, 60, 250  # lines
MEASURED = [
    p for name in (*PACKAGES, "benchmarks") for p in sorted((ROOT / name).rglob("*.py")) if "proto" not in p.parts
]


def test_the_top_level_of_the_library_is_small() -> None:
    entries = [p for p in (ROOT / "fedcompress").iterdir() if p.name not in ("__pycache__", "py.typed")]
    assert len([p for p in entries if p.is_file()]) <= 10
    assert len([p for p in entries if p.is_dir()]) <= 18


def test_modules_functions_and_classes_stay_short() -> None:
    too_long = []
    for path in MEASURED:
        if path.read_text().count("\n") > MAX_MODULE:
            too_long.append(f"{path}: over {MAX_MODULE} lines")
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                limit = MAX_CLASS if isinstance(node, ast.ClassDef) else MAX_FUNCTION
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > limit:
                    too_long.append(f"{path}: {node.name}: {lines} lines: at most {limit}")
    assert not too_long


def test_one_assignment_is_of_one_thing() -> None:
    """Names that are set together belong together: at most two, and never constants or attributes."""
    wrong = []
    for path in MEASURED:
        tree = parse(path)
        constants = {id(s) for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef) for s in n.body}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Assign):
                continue
            target, value = node.targets[0], node.value
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                is_attribute = any(isinstance(e, ast.Attribute) for e in target.elts)
                if len(target.elts) > 2 or id(node) in constants or is_attribute:
                    wrong.append(f"{path}:{node.lineno}")
    assert not wrong


def test_no_file_is_in_a_circle() -> None:
    """Also of imports inside of functions; a package's ``__init__`` counts for what it re-exports."""
    assert find_circle({name: set(imports(name)) for name in sources()}) == []


@pytest.mark.parametrize("folder", sorted({n.rpartition(".")[0] for n in sources()} - {""}))
def test_no_shelf_is_in_a_circle(folder: str) -> None:
    """Of what lies in one folder, files and folders, none leads back to itself."""
    depth = folder.count(".") + 1
    edges: dict[str, set[str]] = {}
    for name in sources():
        if name.startswith(folder + "."):
            here = ".".join(name.split(".")[: depth + 1])
            for other in imports(name):
                there = ".".join(other.split(".")[: depth + 1])
                if other.startswith(folder + ".") and there != here:
                    edges.setdefault(here, set()).add(there)
    assert find_circle(edges) == []


def mirrored(path: Path) -> Path:
    """The folder of code that a folder of unit tests is for."""
    parts = path.relative_to(ROOT / "tests" / "unit").parts
    return ROOT.joinpath(*parts) if parts[:1] in (("clients",), ("server",)) else ROOT.joinpath("fedcompress", *parts)


def test_unit_tests_mirror_the_tree() -> None:
    """``test_NAME.py``, or ``test_NAME_aspect.py``, is for the module or folder NAME there, or for its own folder."""
    wrong = []
    for path in sorted((ROOT / "tests" / "unit").rglob("test_*.py")):
        folder = mirrored(path.parent)
        names = {p.stem for p in folder.iterdir() if p.suffix == ".py" or p.is_dir()} if folder.is_dir() else set()
        about = path.stem.removeprefix("test_")
        if not any(about == n or about.startswith(f"{n}_") for n in {*names, folder.name, "contract"}):
            wrong.append(str(path.relative_to(ROOT)))
    assert not wrong


def test_every_shelf_has_tests() -> None:
    folders = {sources()[n].parent for n in sources()}
    tested = {mirrored(p.parent) for p in (ROOT / "tests" / "unit").rglob("test_*.py")}
    missing = {str(f.relative_to(ROOT)) for f in folders if not any(t == f or f in t.parents for t in tested)}
    assert missing <= {
        "clients/commands/checks",  # in commands/test_doctor
        "clients/runtime",
        "clients/training/engines",  # by real ranks, in tests/integration
    }
