"""JSON lines of several writers, bounded, and shown to people without being fooled by what they say."""

from __future__ import annotations

import json
import logging
import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from clients.commands.logs import Options, follow, render_line, run
from clients.runtime.logs import JsonFormatter, SharedFile, log_file, log_round, rotated_file
from fedcompress.errors import ConfigError


def logger(path: Path, *, max_bytes: int = 1 << 20, kept: int = 2, rank: int | None = None) -> logging.Logger:
    found = logging.Logger("test")
    handler = SharedFile(path, max_bytes=max_bytes, kept=kept)
    handler.setFormatter(JsonFormatter({"site": "north"} if rank is None else {"site": "north", "rank": rank}))
    found.addHandler(handler)
    return found


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text("")
    path = tmp_path / "site.toml"
    path.write_text(
        '[site]\nname="north"\nstate_dir="state"\n[model]\npath="model"\n[data]\ntrain="rows.jsonl"\n',
    )
    return path


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
    shown = render_line(path.read_text().strip())
    assert "\n" not in shown
    assert "\x1b" not in shown
    assert "\\x1b[2J" in shown
    assert render_line("not json\x07").endswith("not json\\x07")


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


def test_the_command_filters_and_counts(site_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="no log"):
        run(Options(site=str(site_file)))
    path = log_file(site_file.parent / "state" / "logs")
    logger(path).info("of the worker")
    path.replace(rotated_file(path, 1))
    for number in range(5):
        logger(path, rank=number % 2).info("number %d", number)
    assert run(Options(site=str(site_file), lines=2, rank=0, as_json=True)) == 0
    assert [json.loads(t)["message"] for t in capsys.readouterr().out.splitlines()] == ["number 2", "number 4"]
    assert run(Options(site=str(site_file))) == 0
    shown = capsys.readouterr().out.splitlines()
    assert (len(shown), "worker: of the worker" in shown[0]) == (6, True), "the rotated file comes first"
    with pytest.raises(ConfigError, match="--lines"):
        Options(site="x", lines=-1)


def test_following_goes_on_after_a_rotation(tmp_path: Path) -> None:
    path, seen = tmp_path / "w.jsonl", []
    log = logger(path, max_bytes=300, kept=9)

    def sleeper(count: list[int]) -> Callable[[float], None]:
        def sleep(seconds: float) -> None:
            count.append(1)
            if len(count) <= 12:
                log.info("%d", len(count))

        return sleep

    found = follow(path, 0, sleeper([]))
    thread = threading.Thread(target=lambda: seen.extend(next(found) for _ in range(12)), daemon=True)
    thread.start()
    thread.join(timeout=20)
    found.close()
    assert [int(json.loads(line)["message"]) for line in seen] == list(range(1, 13))
