"""These checks look at files: base model, tokenizer, data, state folder, keys."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from clients.commands.checks.base import Check, Subject, fail, ok, warn
from clients.data_sources import Row
from clients.data_sources.base import describe_columns
from clients.training.data.rows import read_rows
from clients.training.tasks import task_for
from clients.training.tasks.turns import columns_of_turns
from fedcompress.adapters.base_model import load_tokenizer, tokenizer_digest
from fedcompress.adapters.fingerprint import SOURCE, WEIGHTS, base_fingerprint
from fedcompress.adapters.positions import check_length, count_positions
from fedcompress.errors import ConfigError, FedCompressError
from fedcompress.formatting import size

MOST_HASHED = 2 << 30  # bytes of weights that are hashed without a template to compare with
DATA_SECONDS = 4.0  # seconds in which the rows of a part are checked
LEAST_DISK = 256 << 20  # bytes of free disk, below which the check fails
GOOD_DISK = 2 << 30  # bytes of free disk, below which it warns
COPIES = 16  # copies of the adapter in float32: states, residual, outbox, work, and room for the next


def check_model(subject: Subject) -> list[Check]:
    """Check the base model's config, weights and fingerprint."""
    folder = subject.site.model.path
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", "unknown")
    except (OSError, ValueError, AttributeError) as error:
        return [fail("model", f"{folder}/config.json: {type(error).__name__}", "copy the model again")]
    files = sorted({f for pattern in WEIGHTS for f in folder.glob(pattern)})
    defects = [f"{file.name}: {defect}" for file in files if (defect := find_defect(file))]
    if defects or not files:
        return [fail("model", defects[0] if defects else f"{folder}: no weights", "copy the model again, whole")]
    total = sum(f.stat().st_size for f in files)
    return [ok("model", f"{folder}: {kind}, {len(files)} file(s), {size(total)}"), _fingerprint(subject, total)]


def _fingerprint(subject: Subject, total: int) -> Check:
    """Compare the fingerprint of the weights with the template's.

    Weights of more than ``MOST_HASHED`` bytes (``total`` says how many there are) are hashed only if there is one.
    """
    name = "fingerprint"
    folder = subject.site.model.path
    expected = subject.template.base_fingerprint if subject.template is not None else ""
    if not expected and total > MOST_HASHED and not (folder / SOURCE).is_file():
        return warn(name, f"not computed: {size(total)} of weights", "give --run-template to compare")
    own = base_fingerprint(folder).hex()
    if not expected:
        return ok(name, f"{own[:16]} (no template to compare with)")
    if own != expected:
        text = f"{own[:16]}, but the run's base is {expected[:16]}"
        return fail(name, text, "get the very model that the run's template was made from")
    return ok(name, f"{own[:16]}, as the template has it")


def find_defect(file: Path) -> str:
    """Return why a weight file cannot be used; empty if it can.

    Of a safetensors file the header is read, not the weights.
    """
    try:
        if file.suffix == ".safetensors":
            with file.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                if length > file.stat().st_size:
                    return "is not safetensors, or cut off"
                header = json.loads(stream.read(length))
            ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
            if 8 + length + max(ends, default=0) != file.stat().st_size:
                return "is cut off, or has bytes too many"
        else:
            with file.open("rb") as stream:
                stream.read(1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def check_tokenizer(subject: Subject) -> list[Check]:
    """Check that the tokenizer loads, and is the run's."""
    name = "tokenizer"
    folder = subject.site.model.path
    try:
        words = len(load_tokenizer(folder))
        own = tokenizer_digest(folder)
    except FedCompressError as error:
        return [fail(name, str(error), "copy the tokenizer's files into the model's folder")]
    expected = subject.template.tokenizer if subject.template is not None else ""
    if expected and own != expected:
        rule = "its vocabulary, merges and chat template must be those of the template"
        return [fail(name, f"{own[:16]}, but the run's is {expected[:16]}", rule)]
    return [ok(name, f"{words:,} tokens" + (", as the template has it" if expected else ""))]


def check_data(subject: Subject) -> list[Check]:
    """Check the rows of both parts: they can be read, are enough, and have the run's labels."""
    data = subject.site.data
    task = None
    if subject.template is not None:
        try:
            tokenizer = load_tokenizer(subject.site.model.path)
        except FedCompressError:
            tokenizer = None  # another check says so
        if tokenizer is not None:
            try:
                check_length(
                    subject.max_length,
                    count_positions(subject.site.model.path, subject.template.adapter.config),
                    "--max-length",
                )
            except ConfigError as error:
                return [fail("max-length", str(error.value), error.rule)]
            task = task_for(subject.template.objective, data, tokenizer, subject.max_length)
    return [_part(subject, part, task) for part in ("train", "heldout")]


def _part(subject: Subject, part: str, task: Any) -> Check:
    """Check the rows of a part; those that come after ``DATA_SECONDS`` are only counted."""
    name = f"data.{part}"
    data = subject.site.data
    deadline = time.monotonic() + DATA_SECONDS
    count = 0
    checked = 0
    defect = ""  # of the first row that has one, where there is no template
    try:
        for row in read_rows(data, part):
            count += 1
            if time.monotonic() > deadline:
                continue
            checked += 1
            if task is not None:
                task.example(row)
            elif not defect:
                defect = _find_lack(row, subject)
    except ConfigError as error:
        return fail(name, f"row {count or 1}: {error}", "correct that row, or the keys in [data]")
    except (OSError, UnicodeError) as error:
        return fail(name, f"{type(error).__name__}: {error}", "make the file readable for this user")
    if not count:
        source = "train" if part == "train" or not data.heldout else part
        more = "" if data.heldout else ", two at least: one is held out"
        return fail(name, "0 rows", f"put rows in the file of data.{source}{more}")
    if defect:
        return warn(name, f"{count:,} rows; {defect}", "name the fields in [data]; --run-template checks all rows")
    if checked < count:
        return ok(name, f"{count:,} rows, the first {checked:,} checked")
    return ok(name, f"{count:,} rows" + (", all fit the template" if task is not None else ""))


def _find_lack(row: Row, subject: Subject) -> str:
    """Return what a row lacks for any objective; empty if it suits one."""
    data = subject.site.data
    *forms, text = columns_of_turns(data)
    choices: list[tuple[str, ...]] = [(data.text, data.label), *forms]
    if set(row.values) == set(text):  # with other columns, it may be a label that has another name
        choices.append(text)
    if any(all(key in row.values for key in keys) for keys in choices):
        return ""
    return f"{row.where} has {describe_columns(row.values)}, none of the fields of [data]"


def nearest_existing(path: Path) -> Path:
    """Return the path, or the closest folder above it that exists."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def check_disk(subject: Subject) -> list[Check]:
    """Check that the disk has room for states, residual and outbox."""
    free = shutil.disk_usage(nearest_existing(subject.site.state_dir)).free
    numel = subject.template.adapter.layout.numel if subject.template is not None else 0
    need = max(LEAST_DISK, COPIES * 4 * numel)
    text = f"{size(free)} free for {subject.site.state_dir}"
    if free < need:
        return [fail("disk", f"{text}, {size(need)} are needed", "free space, or move site.state_dir")]
    if free < GOOD_DISK:
        return [warn("disk", text, "logs and outbox may fill it: free space")]
    return [ok("disk", text)]


def check_permissions(subject: Subject) -> list[Check]:
    """Check that nobody else can write the state, or read a key."""
    checks = []
    folder = subject.site.state_dir
    parent = nearest_existing(folder)
    if not os.access(parent, os.W_OK | os.X_OK):
        return [fail("state_dir", f"{parent}: cannot be written by this user", f"chown or chmod {parent}")]
    mode = folder.stat().st_mode & 0o777 if folder.is_dir() else 0o700
    if mode & 0o022:
        checks.append(fail("state_dir", f"{folder}: mode {mode:o}: others may write to it", f"chmod 700 {folder}"))
    elif mode & 0o055:
        checks.append(warn("state_dir", f"{folder}: mode {mode:o}: others may read it", f"chmod 700 {folder}"))
    else:
        checks.append(ok("state_dir", f"{folder}: " + ("private" if folder.is_dir() else "will be made")))
    if subject.key is not None:
        checks.append(_key(subject.key))
    return checks


def _key(file: Path) -> Check:
    """Check that the SuperNode's private key is one, and that nobody else can read it."""
    try:
        mode = file.stat().st_mode & 0o777
        head = file.read_bytes()[:16]
    except OSError as error:
        return fail("key", f"{file}: {error.strerror}", "name a readable private key")
    if mode & 0o077:
        return fail("key", f"{file}: mode {mode:o}: others may read it", f"chmod 600 {file}")
    if not head.startswith(b"-----BEGIN "):
        return fail("key", f"{file}: is not a private key in PEM or OpenSSH form", "name the SuperNode's private key")
    return ok("key", f"{file}: private")
