"""What docs/architecture.md says of the tree, the road of an update and the library's own functions is so."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from fedcompress.adapters import ADAPTERS, parse_adapter
from fedcompress.codecs import CODECS, CodecSpec, sample_spec
from fedcompress.config.drift import DRIFT_CORRECTIONS, parse_drift_correction
from fedcompress.config.schedules import SCHEDULES, parse_schedule
from fedcompress.merging import RULES, SERVER_OPTIMIZERS, WEIGHTINGS, parse_rule, parse_server_optimizer
from fedcompress.merging.data_driven import DATA_RULES
from fedcompress.optim import OPTIMIZERS, parse_optimizer
from tests.repository.graph import imports, parse, sources
from tests.support import ROOT

TEXT = (ROOT / "docs" / "architecture.md").read_text()
MOST_FILES = 12  # on each of the two roads


def section(name: str) -> str:
    return TEXT.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0]


def module(file: str) -> str:
    assert (ROOT / file).is_file(), file
    return file.removesuffix(".py").replace("/", ".")


def steps(name: str) -> list[tuple[str, str, list[str]]]:
    """Of a road: each file, what it agrees on with the one before in another process, and what it asks."""
    found = []
    for line in re.findall(r"^\d+\. (.*)$", section(name), re.MULTILINE):
        hands, _, asked = line.partition("; asks ")
        names = re.findall(r"`([^`]+\.py)`", hands)
        shared = re.findall(r"\[`([^`]+)`\]", hands)
        found.append(
            (module(names[0]), shared[0] if shared else "", [module(f) for f in re.findall(r"`([^`]+)`", asked)])
        )
    return found


def is_linked(one: str, other: str) -> bool:
    return other in imports(one) or one in imports(other)


def uses(name: str, file: str) -> bool:
    """Whether a module imports a contract, or one of its names."""
    contract = file.removesuffix(".py").replace("/", ".")
    text = sources()[name].read_text()
    return (
        contract in imports(name)
        or contract in text
        or bool(re.search(rf"import .*\b{contract.rpartition('.')[2]}\b", text))
    )


@pytest.mark.parametrize("road", ["road up", "road down"])
def test_the_road_of_an_update(road: str) -> None:
    """Each file imports the next or is imported by it; where another process begins, both use what they agree on."""
    path = steps(road)
    assert 8 <= len(path) <= MOST_FILES
    assert len({name for name, _, _ in path}) == len(path)
    for (one, _, asked), (other, shared, _) in pairwise(path):
        if shared:
            assert all(uses(name, shared) for name in (one, other)), (one, other, shared)
        else:
            assert is_linked(one, other) or any(is_linked(a, other) for a in asked), (one, other)
    for name, _, asked in path:
        for one in asked:
            assert is_linked(name, one) or any(is_linked(a, one) for a in asked), (name, one)


def test_the_roads_meet() -> None:
    up, down = steps("road up"), steps("road down")
    assert up[0][0] == down[-1][0] == "clients.training.trainer"
    assert up[-1][0] in down[0][2], "the road down begins where updates were merged"


def test_every_folder_is_in_the_tree() -> None:
    tree = TEXT.partition("## Where is what")[2].partition("## Floors")[0]
    for package in ("fedcompress", "server", "clients"):
        for path in (ROOT / package).iterdir():
            if path.is_dir() and path.name != "__pycache__":
                assert f"{path.name}/" in tree, path
            elif path.suffix == ".py" and not path.stem.startswith("__"):
                assert path.name in tree, path


def reached() -> set[str]:
    """Modules that a command or an app imports, at once or in a function, or starts by name."""
    todo = [name for name in sources() if name.startswith(("clients", "server", "fedcompress.cli"))]
    seen = set(todo)
    while todo:
        name = todo.pop()
        text = sources()[name].read_text()
        started = {other for other in sources() if f'"{other}"' in text}
        for other in (imports(name) | started) - seen:
            seen.add(other)
            todo.append(other)
    return seen


def test_what_no_command_reaches_is_listed() -> None:
    packages = {name for name, path in sources().items() if path.stem in ("__init__", "__main__")}
    listed = {module(f) for f in re.findall(r"^- `([^`]+)`", section("library functions"), re.MULTILINE)}
    assert set(sources()) - reached() - packages == listed


PARSERS = {
    "codec": (CODECS, lambda name: CodecSpec.parse(sample_spec(name))),
    "rule": (RULES, parse_rule),
    "server optimizer": (SERVER_OPTIMIZERS, parse_server_optimizer),
    "optimizer": (OPTIMIZERS, parse_optimizer),
    "adapter": (ADAPTERS, parse_adapter),
    "schedule": (SCHEDULES, parse_schedule),
    "correction": (DRIFT_CORRECTIONS, parse_drift_correction),
}
METHODS = [(kind, name) for kind, (table, _) in PARSERS.items() for name in table]
# Named in the tables of methods, and called from Python alone.
LIBRARY_METHODS = {"fisher", "regmean", "widen", "expert"}


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_every_method_has_a_door(kind: str, name: str) -> None:
    table, parse_call = PARSERS[kind]
    row = table[name]
    parse_call((getattr(row, "example", "") and name) or name)


def test_methods_without_a_door_are_listed() -> None:
    assert set(DATA_RULES) == LIBRARY_METHODS
    assert all(f"`{name}`" in TEXT for name in LIBRARY_METHODS)
    assert set(WEIGHTINGS) >= {"examples", "uniform"}


def test_every_file_of_methods_is_in_a_table() -> None:
    """A class with a ``name`` in a folder of methods is the config of a row: no method lies beside its table."""
    folders = (
        "codecs.selectors",
        "codecs.quantizers",
        "codecs.codes",
        "merging.rules",
        "merging.lora_rules",
        "optim.rules",
    )
    configs = {row.config for table in (CODECS, RULES, OPTIMIZERS) for row in table.values() if row.config}
    known = {(c.__module__, c.__name__) for config in configs for c in config.__mro__}
    for name in sources():
        if name.startswith(tuple(f"fedcompress.{folder}." for folder in folders)):
            for node in parse(sources()[name]).body:
                if hasattr(node, "bases") and any(
                    getattr(getattr(s, "target", None), "id", "") == "name" for s in node.body
                ):
                    assert (name, node.name) in known, (name, node.name)
