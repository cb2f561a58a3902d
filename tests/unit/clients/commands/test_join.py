"""``fedcompress site kit`` at the coordinator and ``site join`` at the site, to a site.toml that loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clients.commands.join import Options, run
from clients.site import SiteConfig
from fedcompress.cli.main import app
from fedcompress.errors import ConfigError, IdentityError
from fedcompress.identity import PrivateKey, PublicKey
from fedcompress.identity.certs import CertOptions, make_certs
from fedcompress.identity.kit import encrypt_kit

SECRET = "correct horse battery"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Have a coordinator's files, and a site's model and rows, in one folder."""
    make_certs(CertOptions(hosts=("127.0.0.1",)), tmp_path / "certs")
    PrivateKey.new("coordinator").save(tmp_path / "state")
    for name in ("model", "initial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "b"}\n')
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    words = ["site", "kit", "north", "--coordinator", "127.0.0.1:8000", "-o", str(tmp_path / "north.kit"), "--json"]
    words += ["--coordinator-key", str(tmp_path / "state" / "coordinator.pub"), "--template", str(tmp_path / "initial")]
    words += ["--root-certificates", str(tmp_path / "certs" / "ca.crt")]
    done = CliRunner().invoke(app, [*words, "--passphrase-file", str(tmp_path / "secret")])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["passphrase"] == ""
    return tmp_path


def options(base: Path, **changes: str) -> Options:
    answers = {"model.path": str(base / "model"), "data.train": str(base / "rows.jsonl")}
    plain = {"kit": str(base / "north.kit"), "folder": str(base / "new"), "passphrase_file": str(base / "secret")}
    return Options(**{**plain, **changes}, answers=answers, yes=True, as_json=True)


def test_a_site_is_set_up_in_one_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(options(folder)) == 0
    found = json.loads(capsys.readouterr().out)
    site = SiteConfig.load(folder / "new" / "site.toml")
    assert (site.name, site.superlink.address) == ("north", "127.0.0.1:8000")
    assert site.superlink.root_certificates == folder / "new" / "ca.crt"
    assert site.identity.key is not None
    assert PrivateKey.load(site.identity.key).public.id == found["key"]
    assert site.identity.coordinator is not None
    assert PublicKey.load(site.identity.coordinator).name == "coordinator"
    assert [Path(path).name for path in found["send_back"]] == ["north.pub", "north.node.pub"]
    assert {p.name for p in (folder / "new").iterdir() if p.stat().st_mode & 0o777 == 0o600} == {
        "north.key",
        "north.node.key",
    }
    assert (folder / "new" / "template" / "config.json").read_text() == "{}"
    with pytest.raises(ConfigError, match="exists already"):
        run(options(folder))


@pytest.mark.parametrize("name", ["../north", "/tmp/north", "", "North East"])
def test_a_name_that_is_none(folder: Path, name: str) -> None:
    facts = json.dumps({"name": name, "coordinator": "h:1", "model": ""}).encode()
    (folder / "bad.kit").write_bytes(encrypt_kit({"kit.json": facts}, SECRET))
    with pytest.raises(ConfigError, match="its name"):
        run(options(folder, kit=str(folder / "bad.kit")))


def test_nothing_is_written_where_it_fails(folder: Path) -> None:
    before = sorted(folder.iterdir())
    (folder / "secret").write_text("another passphrase")
    with pytest.raises(IdentityError, match="does not open"):
        run(options(folder))
    (folder / "secret").write_text(SECRET)
    (folder / "rows.jsonl").rename(folder / "elsewhere")
    with pytest.raises(ConfigError, match="train"):
        run(options(folder))
    (folder / "elsewhere").rename(folder / "rows.jsonl")
    (folder / "here").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        run(options(folder, folder=str(folder / "here")))
    (folder / "here").rmdir()
    assert sorted(folder.iterdir()) == before


def test_a_passphrase_is_made_where_none_is_given(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["site", "kit", "north", "--coordinator", "h:1", "-o", str(folder / "two.kit"), "--json"]
    done = CliRunner().invoke(app, [*words, "--coordinator-key", str(folder / "state" / "coordinator.pub")])
    (folder / "secret").write_text(json.loads(done.output)["passphrase"])
    assert run(options(folder, kit=str(folder / "two.kit"))) == 0
    assert SiteConfig.load(folder / "new" / "site.toml").superlink.root_certificates is None
