"""First lines are sentences with a verb; what takes three parameters explains them; no comment runs over constants."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from tests.repository.graph import parse, sources
from tests.support import ROOT

VERBS = set((ROOT / "tests" / "repository" / "verbs.txt").read_text().split())
FINITE = {"is", "are", "was", "were", "has", "have", "does", "do", "can", "cannot", "may", "must", "will", "goes"}
FRAGMENTS = {"What", "Whether", "Of", "As", "How", "That"}  # first words of what is no whole sentence
Function = ast.FunctionDef | ast.AsyncFunctionDef


def third_person(verb: str) -> str:
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(("s", "x", "z", "ch", "sh", "o")) else "s")


SENTENCE_VERBS = VERBS | {third_person(v) for v in VERBS} | FINITE


def first_sentence(text: str) -> str:
    """The first line, or two where the sentence goes on."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.:?])\s", paragraph)[0]


def documented(path: Path) -> Iterator[tuple[str, ast.AST, bool]]:
    """Public modules, classes and functions with the place they stand at; whether they are functions."""
    tree = parse(path)
    yield "module", tree, False
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield f"class {node.name}", node, False
            for item in node.body:
                if isinstance(item, Function) and not item.name.startswith("_"):
                    yield f"{node.name}.{item.name}", item, True
        elif isinstance(node, Function) and not node.name.startswith("_"):
            yield node.name, node, True


def is_command(path: Path, node: ast.AST) -> bool:
    """Whether a docstring is the help text of a command, which users read instead."""
    return (
        "cli" in path.parts
        and isinstance(node, Function)
        and "typer." in ast.dump(node.args).replace("id='typer'", "typer.")
    )


@cache
def contract_methods(room: str) -> frozenset[str]:
    """Methods that a Protocol of a room explains once for all that implement it."""
    found: set[str] = set()
    for name, path in sources().items():
        if name.startswith(room):
            for node in parse(path).body:
                if isinstance(node, ast.ClassDef) and any("Protocol" in ast.dump(b) for b in node.bases):
                    found |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, Function)}
    return frozenset(found)


def is_implementation(path: Path, name: str) -> bool:
    """Whether a method is explained by the contract of its room, and is not that contract itself."""
    room = ".".join(path.relative_to(ROOT).parts[:2])
    contract, method = contract_methods(room), name.rpartition(".")[2]
    return "." in name and name not in contract and method in {c.rpartition(".")[2] for c in contract}


def complaints(path: Path) -> Iterator[str]:
    for name, node, is_function in documented(path):
        text = ast.get_docstring(node) or ""  # type: ignore[arg-type]
        sentence = first_sentence(text)
        words = re.findall(r"[A-Za-z][A-Za-z'-]*", re.sub(r"``[^`]*``", "CODE", sentence))
        if not words or sentence[-1] not in ".:?":
            yield f"{name}: the first line is no sentence: {sentence[:60]!r}"
        elif words[0] in FRAGMENTS:
            yield f"{name}: begins as a fragment: {sentence[:60]!r}"
        elif is_function and words[0].lower() not in VERBS:
            yield f"{name}: must begin with a verb, as in 'Return ...': {sentence[:60]!r}"
        elif not is_function and not {w.lower() for w in words} & SENTENCE_VERBS:
            yield f"{name}: has no verb: {sentence[:60]!r}"
        if isinstance(node, Function) and not is_command(path, node) and not is_implementation(path, name):
            yield from missing_sections(name, node, text)


def missing_sections(name: str, node: Function, text: str) -> Iterator[str]:
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    parameters = [a.arg for a in given if a.arg not in ("self", "cls")]
    if len(parameters) < 3:
        return
    section = text.partition("Args:")[2]
    for parameter in parameters:
        if not re.search(rf"^\s*(?:[\w, ]+, )?\*?{re.escape(parameter)}(?:, [\w, ]+)?:", section, re.MULTILINE):
            yield f"{name}: Args lacks {parameter}"
            break
    if not (isinstance(node.returns, ast.Constant) and node.returns.value is None) and not re.search(
        r"^\s*(Returns|Yields):", text, re.MULTILINE
    ):
        yield f"{name}: lacks Returns"
    raised = [n for n in ast.walk(node) if isinstance(n, ast.Raise) and n.exc is not None]
    if raised and "Raises:" not in text:
        yield f"{name}: lacks Raises"


@pytest.mark.parametrize("module", sorted(sources()))
def test_docstrings(module: str) -> None:
    path = sources()[module]
    assert list(complaints(path)) == [], path


def test_no_comment_runs_over_several_constants() -> None:
    """A comment behind a constant ends there: the next one does not go on with 'that' or 'of which'."""
    wrong = []
    for path in sources().values():
        lines = path.read_text().split("\n")
        for number, (one, two) in enumerate(pairwise(lines), start=1):
            first, second = (re.match(r"^[A-Z_]+(?::[^=]+)? = .*#\s*(.*)$", line) for line in (one, two))
            if first and second and re.match(r"(that|which|of which|and|the same|as above|those|these)\b", second[1]):
                wrong.append(f"{path}:{number + 1}")
    assert not wrong
