"""JSON lines of several writers, in files of bounded size."""

from __future__ import annotations

import json
import logging
import multiprocessing
from pathlib import Path

import pytest

from clients.runtime.logs import MAX_MESSAGE, JsonFormatter, SharedFile, TextFormatter, log_round


def logger(path: Path, *, max_bytes: int = 1 << 20, kept: int = 2, rank: int | None = None) -> logging.Logger:
    found = logging.Logger("test")
    handler = SharedFile(path, max_bytes=max_bytes, kept=kept)
    handler.setFormatter(JsonFormatter({"site": "north"} if rank is None else {"site": "north", "rank": rank}))
    found.addHandler(handler)
    return found


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_where_it_is_from(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    log = logger(path, rank=1)
    with log_round("run", 3):
        log.warning("step %d", 7)
    try:
        raise ValueError("boom")
    except ValueError:
        log.exception("failed")
    first, second = lines_of(path)
    assert {k: first[k] for k in ("level", "logger", "message", "run", "round", "site", "rank")} == {
        "level": "WARNING",
        "logger": "test",
        "message": "step 7",
        "run": "run",
        "round": 3,
        "site": "north",
        "rank": 1,
    }
    assert "run" not in second
    assert "ValueError: boom" in str(second["exception"])
    assert path.stat().st_mode & 0o077 == 0


def test_a_message_cannot_forge_a_line(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    nasty = 'x\n{"level": "INFO"}\r\u2028\x1b[2J'
    logger(path).error(nasty)
    (found,) = lines_of(path)
    assert found["message"] == nasty
    assert path.read_bytes().count(b"\n") == 1


def _write(path: Path, who: int, count: int) -> None:
    log = logger(path, max_bytes=4000, kept=50, rank=who)
    for number in range(count):
        log.info("%d", number)


def test_several_processes_write_and_rotate_one_file(tmp_path: Path) -> None:
    path, context = tmp_path / "w.jsonl", multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(path, who, 100)) for who in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=60)
    files = [f for f in tmp_path.iterdir() if not f.name.startswith(".")]
    assert len(files) > 3
    assert all(f.stat().st_size <= 4000 for f in files)
    found = [line for f in files for line in lines_of(f)]
    for who in range(3):
        assert sorted(int(str(x["message"])) for x in found if x["rank"] == who) == list(range(100))


def test_old_files_are_deleted(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    log = logger(path, max_bytes=400, kept=2)
    for number in range(40):
        log.info("%d", number)
    assert sorted(f.name for f in tmp_path.iterdir() if "lock" not in f.name) == ["w.jsonl", "w.jsonl.1", "w.jsonl.2"]


def test_a_long_message_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    logger(path).info("x" * (MAX_MESSAGE + 1))
    (line,) = lines_of(path)
    assert line["message"] == "x" * MAX_MESSAGE


def test_a_text_line_stays_one_line() -> None:
    record = logging.LogRecord("test", logging.INFO, "", 0, "one\ntwo\x1b[2J", None, None)
    assert TextFormatter("%(levelname)s %(message)s").format(record) == "INFO one\\ntwo\\x1b[2J"


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As on a full disk: the error is printed, and the caller goes on."""
    path = tmp_path / "w.jsonl"
    log = logger(path)
    path.mkdir()
    log.info("lost")
    assert "IsADirectoryError" in capsys.readouterr().err
