"""``site doctor``: a line for each check, and one that breaks hides no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clients.commands import doctor
from clients.commands.checks import compute
from clients.commands.checks.base import FAIL, OK, Check, Subject, fail, ok
from clients.commands.doctor import Options, run
from fedcompress.errors import ConfigError
from tests.unit.clients.commands.subjects import TOML


def test_lines_and_exit_codes(site_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def breaks(subject: Subject) -> list[Check]:
        raise RuntimeError("of its own\nmaking")

    good = (lambda subject: [ok("first", "is well")],)
    assert run(Options(site=str(site_file)), good) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["ok", "ok"]
    bad = (breaks, lambda subject: [fail("last", "is not\nwell", "mend it")])
    assert run(Options(site=str(site_file), as_json=True), bad) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(c["name"], c["status"]) for c in found["checks"]] == [("config", OK), ("breaks", FAIL), ("last", FAIL)]
    assert found["ok"] is False
    assert run(Options(site=str(site_file)), bad) == 1
    shown = capsys.readouterr().out
    assert "-> mend it" in shown
    assert "is not\\nwell" in shown
    assert "2 of 3 checks failed" in shown


def test_a_bad_site_toml_and_a_bad_template_are_results(site_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Options(site=str(site_file), run_template=str(site_file.parent), as_json=True), ()) == 1
    assert [c["name"] for c in json.loads(capsys.readouterr().out)["checks"]] == ["config", "template"]
    site_file.write_text(TOML.replace('"north"', '"no/rth"'))
    assert run(Options(site=str(site_file), as_json=True)) == 1
    (only,) = json.loads(capsys.readouterr().out)["checks"]
    assert "site.name" in only["text"]
    with pytest.raises(ConfigError, match="SITE"):
        run(Options(site="/absent.toml"))


def test_packages_are_checked_first() -> None:
    """Where one is absent, other checks cannot say what is wrong."""
    assert doctor.CHECKS[0] is compute.check_packages
