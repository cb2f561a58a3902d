"""App bundles (FABs) with hostile names and versions, installed as a SuperNode's process installs them.

Flower decides where a bundle lies and what of it runs; no code of ours comes before that. The tests state what
Flower 1.41 does, and what a site can rely on; the check of our app, which is against mistakes, is tested last.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedcompress
from fedcompress.errors import MismatchError
from fedcompress.flower import from_records, require_version, to_records

ESCAPES = "\x1b]0;owned\x07\x1b[2J\n2026-01-01 all is well"
LONG = "9" * 5000
OURS = ("fedcompress", "fedcompress", fedcompress.__version__)


def bundle(publisher: str, name: str, version: str, path: str = "app.py") -> bytes:
    """As ``flwr build`` makes them, with one file of code."""
    project = f"[project]\nname = {json.dumps(name)}\nversion = {json.dumps(version)}\n"
    flower = f"[tool.flwr.app]\npublisher = {json.dumps(publisher)}\n"
    parts = '[tool.flwr.app.components]\nserverapp = "app:app"\nclientapp = "app:app"\n'
    files = {"pyproject.toml": (project + flower + parts).encode(), path: b"app = 'hostile'\n"}
    listed = "".join(f"{name},{hashlib.sha256(data).hexdigest()},{8 * len(data)}\n" for name, data in files.items())
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for file, data in {**files, ".info/CONTENT": listed.encode()}.items():
            archive.writestr(file, data)
    return stream.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A site's folder, in it Flower's, with our app installed."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "site" / "flower" / "home"))
    for name in ("site.toml", "site.key", "state/session.db", "flower/home/config.toml"):
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    install(bundle(*OURS))
    yield tmp_path / "site"
    assert not [path for path in tmp_path.iterdir() if path.name != "site"], "and nothing beside it"


def install(data: bytes) -> Path:
    """What Flower's process for a message does at a site before it loads an app."""
    from flwr.cli.install import install_from_fab
    from flwr.common.config import get_fab_config, get_metadata_from_config, get_project_dir

    installed = install_from_fab(data, skip_prompt=True)
    found = get_project_dir(*get_metadata_from_config(get_fab_config(data)), hashlib.sha256(data).hexdigest())
    assert found.resolve() == installed.resolve(), "it is loaded from where it lies"
    return installed


@pytest.mark.parametrize(
    "names",
    [
        ("..", "..", ".."),
        ("fedcompress", "fedcompress", "/etc/passwd"),
        ("fedcompress", "fedcompress", "1.0/../../../../out"),
        ("fedcompress", "fedcompress", "../../../site.toml"),
        ("fedcompress", "fedcompress", "x/../../../../state/session.db"),
        ("fedcompress", "fedcompress", ESCAPES),
        (ESCAPES, ESCAPES, "1.0"),
        OURS,
    ],
)
def test_no_bundle_changes_what_a_site_has(names: tuple[str, str, str], site: Path) -> None:
    """Wherever it leads, it makes a new folder, whose name ends with the bundle's own hash."""
    before, data = contents(site), bundle(*names, path="other.py")
    installed = install(data)
    assert installed.name.endswith(f".{hashlib.sha256(data).hexdigest()[:8]}")
    after = contents(site)
    assert {name: after[name] for name in before} == before
    new = {(site / name).resolve() for name in after.keys() - before.keys()}
    assert new == {installed.resolve() / name for name in ("other.py", "pyproject.toml")}


@pytest.mark.parametrize(
    "names",
    [
        ("fedcompress", "../../../out", "1.0"),
        ("../../..", "fedcompress", "1.0"),
        ("/etc", "fedcompress", "1.0"),
        ("fedcompress", "fedcompress", LONG),
        ("fedcompress", LONG, "1.0"),
        ("fedcompress", "fedcompress", "1.0\0"),
    ],
)
def test_bundles_that_flower_refuses(names: tuple[str, str, str], site: Path) -> None:
    """Slashes in publisher or name, what no folder can be called, and files that lead out of the bundle."""
    before = contents(site)
    with pytest.raises((ValueError, OSError)):
        install(bundle(*names))
    assert contents(site) == before


@pytest.mark.parametrize("path", ["../out.py", "/tmp/out.py", "a/../../../out.py"])
def test_files_that_lead_out_of_a_bundle(path: str, site: Path) -> None:
    from click import ClickException

    before = contents(site)
    with pytest.raises(ClickException, match="Unsafe path"):
        install(bundle(*OURS, path=path))
    assert contents(site) == before


@pytest.mark.xfail(strict=True, reason="Flower 1.41 takes any version for a part of a path: see docs/security.md")
@pytest.mark.parametrize("version", ["../../../out", "1.0/../../../../out"])
def test_a_version_that_leads_out_of_flowers_folder(version: str, site: Path) -> None:
    installed = install(bundle("fedcompress", "fedcompress", version))
    assert installed.resolve().is_relative_to(Path(os.environ["FLWR_HOME"]).resolve() / "apps")


@pytest.mark.parametrize("version", ["../..", "/etc/passwd", "", ESCAPES, LONG, f"{fedcompress.__version__}\n"])
def test_an_app_of_another_version(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is refused before anything of the site or the message is looked at; its version is told in one short line."""
    from flwr.app import Context, Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    from clients import app

    for name in ("_task_id", "_run_id", "_node_id"):  # which Flower's process knows before it loads an app
        monkeypatch.setattr(TaskIdentity, name, 1)
    monkeypatch.setattr(app, "LIBRARY", version)
    with pytest.raises(MismatchError):
        require_version(version)
    context = Context(
        run_id=1, node_id=2, node_config={"site-config": str(tmp_path)}, state=RecordDict(), run_config={}
    )
    message = Message(to_records({"task": "no task"}, b"payload"), dst_node_id=2, message_type="train")
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.ERROR, "flwr"):
        reply = app.handle(message, context)
    status, payload = from_records(reply.content)
    text = str(status["message"])
    assert (status["status"], status["code"], status["site"], payload) == ("failed", "MismatchError", "", b"")
    assert f"fedcompress: {fedcompress.__version__} is installed: the app needs " in text
    assert text.isprintable()
    assert len(text) < 300
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert not list(tmp_path.iterdir())
