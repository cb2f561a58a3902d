"""Lines of a log, shown to people without being fooled by what they say."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from clients.commands.logs import Options, follow, render_line, run
from clients.runtime.logs import log_file, rotated_file
from fedcompress.errors import ConfigError
from tests.unit.clients.runtime.test_logs import logger


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


def test_a_message_cannot_forge_a_line(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    logger(path).error('x\n{"level": "INFO"}\r\u2028\x1b[2J')
    shown = render_line(path.read_text().strip())
    assert "\n" not in shown
    assert "\x1b" not in shown
    assert "\\x1b[2J" in shown
    assert render_line("not json\x07").endswith("not json\\x07")


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
