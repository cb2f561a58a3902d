"""``fedcompress site init`` asks, and writes a commented site.toml.

The file is the example in ``clients.site``'s docstring with the answers in it, so that every key that a site knows
is there with its comment. Keys that were not asked for stand as they are if the example has their default, and
else are commented out.
"""

from __future__ import annotations

import glob
import json
import os
import re
import socket
import sys
import tomllib
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import clients.site
from clients.network.link_speed import Link
from clients.site import KNOWN, Data, Engine, SiteConfig
from fedcompress.adapters.base_model import DTYPES, QUANTIZATIONS, BaseModel
from fedcompress.errors import ConfigError
from fedcompress.types import NAME_PATTERN

_KEY = re.compile(r"^(\w+)( *= *)([^#]*?)( *)(#.*)?$")  # key, equals sign, value, gap and comment of a line
# dataclasses with the defaults of a section's keys
DEFAULTS: dict[str, type] = {"model": BaseModel, "data": Data, "engine": Engine, "link": Link}
Ask = Callable[[str, Any], str]


@dataclass(frozen=True, kw_only=True)
class Question:
    """Describes one question that is asked.

    Attributes:
        key: of its answer in site.toml, ``section.key``.
        text: what is asked.
        required: whether there is no file without an answer.
    """

    key: str
    text: str
    required: bool = False


QUESTIONS = (
    Question(key="site.name", text="Name of this site, unique in the federation"),
    Question(key="site.state_dir", text="Folder for its state, on a local disk"),
    Question(
        key="model.path", text="Base model: a folder, a GGUF file, or a hub id as organisation/name", required=True
    ),
    Question(key="model.dtype", text=f"Precision of its weights ({', '.join(DTYPES)})"),
    Question(key="model.quantization", text=f"Quantisation of the frozen base ({', '.join(QUANTIZATIONS)})"),
    Question(
        key="data.train",
        text="Training rows: .jsonl, .csv, .tsv, .parquet or another source",
        required=True,
    ),
    Question(key="data.heldout", text="Held-out rows (empty: cut from the training rows)"),
    Question(key="engine.ranks", text="Training processes"),
    Question(key="engine.zero_stage", text="DeepSpeed ZeRO stage (0 to 3)"),
    Question(key="engine.micro_batch", text="Examples that a process handles at once (0: as many as fit)"),
    Question(key="engine.threads", text="CPU threads of a process"),
    Question(key="privacy.max_update_norm", text="Norm that updates are clipped to (0: none)"),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Holds what can be set from the command line.

    Attributes:
        out: path of the file to write.
        answers: by ``section.key``; the others are asked for.
        yes: take defaults instead of asking.
        force: overwrite a file that is there.
        as_json: print JSON.
    """

    out: str
    answers: dict[str, Any] = field(default_factory=dict)
    yes: bool = False
    force: bool = False
    as_json: bool = False


def run(options: Options, ask: Ask | None = None) -> int:
    """Write the file, after it was loaded as the worker will load it; return 0.

    Raises:
        ConfigError: the file is there already, an answer is missing, or the file would not load.
    """
    path = Path(options.out).absolute()
    if path.exists() and not options.force:
        raise ConfigError("--out", path, "exists already: --force overwrites it")
    answers = collect(options, path.parent, ask)
    text = render(answers)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    try:
        site = SiteConfig.load(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    result = {"file": str(path), "site": site.name, "state_dir": str(site.state_dir), "model": str(site.model.path)}
    if options.as_json:
        print(json.dumps(result))
    else:
        print(f"{path}: site {site.name}, model {site.model.path.name}")
        print(f"next: fedcompress site doctor {path}")
    return 0


def collect(options: Options, base: Path, ask: Ask | None = None) -> dict[str, Any]:
    """Return all answers: given, asked for, or defaults if nobody can be asked.

    Args:
        options: has answers, and says whether to ask.
        base: folder of the new file.
        ask: takes a question's text and its default, and returns the answer; None: a prompt, on a terminal.

    Returns:
        Answers by ``section.key``; an empty ``data.heldout`` is left out.

    Raises:
        ConfigError: an answer without a default is missing, or is of the wrong type.
    """
    if ask is None and not options.yes and sys.stdin.isatty():
        ask = _prompt
    answers = {key: _typed(key, value) for key, value in options.answers.items()}
    for question in QUESTIONS:
        if question.key in answers:
            continue
        default = _default(question.key, base)
        if ask is not None:
            while True:
                answer: Any = ask(question.text, default)
                if answer or not question.required:
                    break
            answers[question.key] = _typed(question.key, answer)
        elif question.required and default in ("", None):
            option = "--" + question.key.partition(".")[2].replace("path", "model").replace("_", "-")
            raise ConfigError(option, "nothing", "must be given where nobody can be asked")
        else:
            answers[question.key] = default
    return {key: value for key, value in answers.items() if value != "" or key != "data.heldout"}


def _prompt(text: str, default: Any) -> str:
    import typer

    return str(typer.prompt(text, default="" if default is None else default, show_default=default not in ("", None)))


def _default(key: str, base: Path) -> Any:
    """Return what is probably right on this machine, with files beside the new one."""
    section, _, name = key.partition(".")
    match key:
        case "site.name":
            host = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower()).strip("-")
            return host if NAME_PATTERN.fullmatch(host) else "site"
        case "site.state_dir":
            return "state"
        case "model.path":
            return ""
        case "data.train" | "data.heldout":
            return f"{name}.jsonl" if (base / f"{name}.jsonl").is_file() else ""
        case "engine.ranks":
            return max(1, min(len(glob.glob("/dev/nvidia[0-9]*")), len(os.sched_getaffinity(0))))
        case "privacy.max_update_norm":
            return 0.0
        case _:
            return _field_default(section, name)


def _field_default(section: str, name: str) -> Any:
    """Return a key's default in its dataclass; None if it has none."""
    for field_ in fields(DEFAULTS[section]) if section in DEFAULTS else ():
        if field_.name == name and field_.default is not MISSING:
            return field_.default
    return 0.0 if section == "privacy" else None


def _typed(key: str, value: Any) -> Any:
    """Return an answer as a value of its key's type.

    Raises:
        ConfigError: it is not one.
    """
    section, _, name = key.partition(".")
    kind = KNOWN[section][name]
    if kind is str or isinstance(value, kind):
        return str(value) if kind is str else value
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise ConfigError(key, repr(value), f"must be of type {kind.__name__}") from None


def render(answers: dict[str, Any]) -> str:
    """Return the text of site.toml.

    Raises:
        ConfigError: an answer has no place in the example.
    """
    example = (clients.site.__doc__ or "").splitlines()
    section = ""
    lines = []
    left = dict(answers)
    start = next(i for i, line in enumerate(example) if line.startswith("["))
    for line in example[start:]:
        if line.startswith("["):
            section = line.strip("[] ")
        lines.append(_filled(section, line, left))
    if left:  # an answer whose key the example lacks must not get lost
        raise ConfigError("site.toml", sorted(left), "have no place in the example of clients.site")
    return "\n".join(lines).rstrip() + "\n"


def _filled(section: str, line: str, left: dict[str, Any]) -> str:
    """Return a line of the example with its answer, which is then removed from ``left``; without one, as its default
    says.
    """
    match = _KEY.match(line)
    if match is None:
        return line
    name, equals, value, gap, comment = match.groups("")
    key = f"{section}.{name}"
    if key in left:
        new = json.dumps(left.pop(key), ensure_ascii=False)
        space = " " * max(1, len(value) + len(gap) - len(new)) if comment else ""
        return f"{name}{equals}{new}{space}{comment}"
    default = _field_default(section, name)
    is_default = default is not None and tomllib.loads(f"x = {value}")["x"] == default
    return line if is_default or key == "model.revision" else f"# {line}"
