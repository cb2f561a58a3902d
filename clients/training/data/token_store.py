"""Tokens are stored on disk and mapped into memory, where a set does not fit, or a restart need not tokenize again.

A store is a folder of flat files, without headers. For each of the ragged columns ``tokens``, ``labels`` and ``where``,
NAME.bin has the values of all rows end to end, and NAME.ends (int64) where each row ends; predictions.bin (int64) has a
number for each row; meta.json has format, number of rows, and the digest of what the tokens were made from.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import numpy as np

from clients.training.tasks import Example
from fedcompress.errors import ConfigError, FedCompressError, StateError

FORMAT = 1  # version of the files' format
COLUMNS = {"tokens": np.int32, "labels": np.int32, "where": np.uint8}  # types of the ragged columns; where is UTF-8
META = "meta.json"  # of a store; it is written last
FAILED = "failed.json"  # ending of the file beside a store that tells why it was not written
LOCK = "lock"  # ending of the file beside a store that is locked


class TokenStore(Sequence[Example]):
    """Reads examples from a folder that ``write_store`` filled; only what is asked for is read."""

    def __init__(self, folder: Path) -> None:
        count = _meta(folder).get("rows", 0)
        self._ends = {name: _mapped(folder / f"{name}.ends", np.int64, count) for name in COLUMNS}
        self._values = {
            name: _mapped(folder / f"{name}.bin", kind, int(self._ends[name][-1]) if count else 0)
            for name, kind in COLUMNS.items()
        }
        self._predictions = _mapped(folder / "predictions.bin", np.int64, count)

    def __len__(self) -> int:
        return len(self._predictions)

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> list[Example]: ...
    def __getitem__(self, at: int | slice) -> Example | list[Example]:
        """Return an example, or a list of them."""
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        row = range(len(self))[at]
        tokens, labels, where = (self._row(name, row) for name in COLUMNS)
        text = where.tobytes().decode("utf-8")
        return Example(text, tokens.tolist(), labels.tolist(), int(self._predictions[row]))

    def _row(self, name: str, row: int) -> Any:
        ends = self._ends[name]
        begin = int(ends[row - 1]) if row else 0
        return self._values[name][begin : int(ends[row])]

    def lengths(self) -> Any:
        """Return the number of tokens of each example, int64."""
        return np.diff(self._ends["tokens"], prepend=0)


def _mapped(path: Path, kind: Any, count: int) -> Any:
    """Map a file of ``count`` values; raise ``StateError`` if it has another size."""
    if path.stat().st_size != count * np.dtype(kind).itemsize:
        raise StateError(f"{path}: {path.stat().st_size} bytes: must be {count} values: remove its folder")
    return np.memmap(path, kind, mode="r", shape=(count,)) if count else np.empty(0, kind)


def _meta(folder: Path) -> dict[str, Any]:
    """Read a store's meta.json; empty if there is none, or it is of another format."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return meta if isinstance(meta, dict) and meta.get("format") == FORMAT else {}


def write_store(folder: Path, digest: str, examples: Iterable[Example]) -> None:
    """Write examples beside ``folder``, one at a time, and put them in its place when all are there.

    Args:
        folder: of the store; whatever is there before is replaced.
        digest: of what the tokens are made from.
        examples: are read once, in order.
    """
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    rows = 0
    ends = dict.fromkeys(COLUMNS, 0)
    names = [*(f"{name}{ending}" for name in COLUMNS for ending in (".bin", ".ends")), "predictions.bin"]
    files = {name: (part / name).open("wb") for name in names}
    try:
        for example in examples:
            for name, values in _columns(example).items():
                files[f"{name}.bin"].write(values.tobytes())
                ends[name] += len(values)
                files[f"{name}.ends"].write(np.int64(ends[name]).tobytes())
            files["predictions.bin"].write(np.int64(example.predictions).tobytes())
            rows += 1
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    finally:
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
    (part / META).write_text(json.dumps({"format": FORMAT, "rows": rows, "digest": digest}), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _columns(example: Example) -> dict[str, Any]:
    """Return an example's ragged columns as arrays of the types in ``COLUMNS``."""
    raw = {"tokens": example.tokens, "labels": example.labels, "where": list(example.where.encode())}
    return {name: np.asarray(raw[name], kind) for name, kind in COLUMNS.items()}


def shared_store(
    folder: Path, digest: str, examples: Callable[[], Iterator[Example]], *, rank: int = 0, world: int = 1
) -> TokenStore:
    """Return the store of all ranks: rank 0 writes it unless it is there, the others wait for that.

    Args:
        folder: of the store.
        digest: of what the tokens are made from; a store of another is replaced, and of an empty one always.
        examples: returns what to write.
        rank: number of this process.
        world: number of ranks; all call this.

    Returns:
        The store, open for reading.

    Raises:
        ConfigError: of ``examples``, on every rank.
        StateError: the store is damaged, or the rank that wrote it failed.
    """
    if rank == 0:
        with _locked(folder, fcntl.LOCK_EX):
            _failure(folder).unlink(missing_ok=True)
            _meet(world)  # the others ask for the lock after it is held, however long the writing takes
            store = _read_store(folder, digest)
            if store is not None:
                return store
            _write(folder, digest, examples)
            return TokenStore(folder)
    _meet(world)
    with _locked(folder, fcntl.LOCK_SH):
        if _failure(folder).is_file():
            reason = json.loads(_failure(folder).read_text(encoding="utf-8"))
            raise ConfigError(*reason) if len(reason) == 3 else StateError(reason[0])
        if not _meta(folder):
            raise StateError(f"{folder}: rank 0 has written none: it ended before")
        return TokenStore(folder)


def _read_store(folder: Path, digest: str) -> TokenStore | None:
    """Return the store that was written before, if it is of this digest and whole."""
    if not digest or _meta(folder).get("digest") != digest:
        return None
    try:
        return TokenStore(folder)
    except (StateError, OSError):
        return None


def _write(folder: Path, digest: str, examples: Callable[[], Iterator[Example]]) -> None:
    """Write a store, or leave a file that tells the other ranks why it failed."""
    try:
        write_store(folder, digest, examples())
    except Exception as error:
        reason = [f"{folder}: rank 0 could not write the tokens: {type(error).__name__}"]
        if isinstance(error, ConfigError):
            reason = [error.field, str(error.value), error.rule]
        elif isinstance(error, FedCompressError):
            reason = [str(error)]
        _failure(folder).write_text(json.dumps(reason), encoding="utf-8")
        raise


def _failure(folder: Path) -> Path:
    """Return the file that tells why the store of a folder could not be written."""
    return folder.with_name(f"{folder.name}.{FAILED}")


@contextmanager
def _locked(folder: Path, mode: int) -> Iterator[None]:
    """Hold a store's lock; the kernel frees that of a process that ends, so nobody waits for a dead one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.{LOCK}").open("ab") as stream:
        fcntl.flock(stream, mode)
        yield


def _meet(world: int) -> None:
    """Wait until all ranks are here."""
    if world > 1:
        import torch

        torch.distributed.barrier()
