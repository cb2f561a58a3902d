"""The README's code runs, its commands are understood, and its links lead somewhere."""

from __future__ import annotations

import re

import pytest

from tests.support import ROOT
from tests.unit.cli.test_cli_is_documented import check_command, commands_of

README = ROOT / "README.md"
DOCUMENTS = sorted([README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), ROOT / "deploy" / "README.md"])


def test_the_python_example() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert (names["decoded"]["w"] == names["received"]["w"]).all()  # type: ignore[index]


@pytest.mark.parametrize("command", commands_of(README))
def test_a_command(command: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    check_command(command)


def headings(text: str) -> set[str]:
    """Anchors as they are made of headings."""
    found = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower().replace("`", "")).strip().replace(" ", "-") for h in found}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links(document: object) -> None:
    """Every relative link is to a file, or to a heading, that is there."""
    text = document.read_text()  # type: ignore[attr-defined]
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document  # type: ignore[attr-defined]
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in headings(file.read_text()), target


def test_it_is_short() -> None:
    assert README.read_text().count("\n") < 110
