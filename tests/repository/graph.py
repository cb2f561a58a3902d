"""The imports of library and applications as a graph, from the sources alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.support import ROOT

PACKAGES = ("fedcompress", "clients", "server")


@cache
def sources() -> dict[str, Path]:
    """Dotted names of all modules to their files; a package is named by its folder. Generated code is left out."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "proto" not in path.parts:
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                found[name.removesuffix(".__init__")] = path
    return found


@cache
def parse(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text())


def _statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports, also inside of functions, but for those that only a type checker follows."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        else:
            yield from _statements(child)


@cache
def imports(module: str) -> frozenset[str]:
    """Modules of the project that a module imports. A name that a package re-exports counts for who defines it."""
    found = set()
    for statement in _statements(parse(sources()[module])):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names if alias.name in sources()}
        elif statement.module in sources():
            found |= {_owner(str(statement.module), alias.name) for alias in statement.names}
    return frozenset(found - {module})


@cache
def _owner(module: str, name: str) -> str:
    """The module that defines ``name`` of ``module``."""
    if f"{module}.{name}" in sources():
        return f"{module}.{name}"
    for statement in parse(sources()[module]).body:
        if (
            isinstance(statement, ast.ImportFrom)
            and statement.module in sources()
            and sources()[module].stem == "__init__"
        ):
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    return _owner(str(statement.module), alias.name)
    return module


def find_circle(edges: dict[str, set[str]]) -> list[str]:
    """One circle of a graph, or nothing."""
    done: set[str] = set()
    for start in edges:
        path: list[str] = []
        found = _walk(start, edges, path, done)
        if found:
            return found
    return []


def _walk(node: str, edges: dict[str, set[str]], path: list[str], done: set[str]) -> list[str]:
    if node in path:
        return [*path[path.index(node) :], node]
    if node in done:
        return []
    path.append(node)
    for following in sorted(edges.get(node, ())):
        found = _walk(following, edges, path, done)
        if found:
            return found
    path.pop()
    done.add(node)
    return []
