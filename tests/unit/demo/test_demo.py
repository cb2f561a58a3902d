"""Data, processes, options and result of the demo, without running it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedcompress.demo import data, run
from fedcompress.demo.federation import Federation
from fedcompress.demo.plot import plot_accuracy_against_bytes
from fedcompress.demo.run import DemoOptions, make_result, measure_phases
from fedcompress.errors import ConfigError, MissingPackageError, ProcessError
from fedcompress.experiments import Grid
from fedcompress.identity.certs import CertOptions, make_certs
from fedcompress.runtime.process_group import wait_until
from fedcompress.traffic.relay import Wire, read_wire
from tests.support import ROOT, lora_layout


def test_every_row_lies_at_one_site_and_the_files_repeat(tmp_path: Path) -> None:
    sites = data.write_sites(tmp_path / "one", 3)
    again = data.write_sites(tmp_path / "two", 3)
    seen: set[str] = set()
    for site, twin in zip(sites, again, strict=True):
        for kind in ("train", "heldout"):
            path = getattr(site, kind)
            assert path.read_bytes() == getattr(twin, kind).read_bytes()
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            texts = {row["text"] for row in rows}
            assert len(texts) == len(rows)
            assert not texts & seen
            seen |= texts
            assert {row["label"] for row in rows} == set(data.LABELS), "every hospital sees some of everything"
        assert site.rows[0] > 400
        assert site.rows[1] > 100
    assert 2000 < len(seen) <= data.ROWS_PER_LABEL * len(data.LABELS)


def test_an_absent_package_is_named_with_the_remedy() -> None:
    with pytest.raises(MissingPackageError, match=r"no_such_package: is absent: pip install x"):
        data.package_folder("no_such_package", "pip install x")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": -1}, "--rounds: -1"),
        ({"sites": 9}, "--sites: 9"),
        ({"steps": -1}, "--steps: -1"),
        ({"seed": -1}, "--seed: -1"),
        ({"task": "x"}, "--task: x"),
        ({"codec": "zip"}, "--codec: zip"),
        ({"downlink_codec": "zip"}, "--downlink-codec: zip"),
        ({"rule": "tiers"}, "--rule: tiers"),
    ],
)
def test_bad_options(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DemoOptions(out=Path("x"), **changes)


LAYOUT = lora_layout()


def events() -> list[dict[str, Any]]:
    """Two rounds of two sites."""
    out: list[dict[str, Any]] = [{"event": "start", "at": 100.0}, {"event": "asked", "at": 105.0, "round": 1}]
    for version in range(3):
        for site in ("a", "b"):
            reply = {"event": "reply", "at": 110.0, "round": version + 1, "site": site, "bytes": 50}
            out.append({**reply, "metrics": {"seconds_load": 0.0}})
        out.append({"event": "quality", "at": 110.0, "version": version, "accuracy": 0.2 * version, "loss": 1.0})
        if version < 2:
            row = {"event": "round", "at": 110.0 + 5 * version, "round": version + 1, "version": version + 1}
            out.append({**row, "uplink_bytes": 100, "downlink_bytes": 60, "seconds": 5.0})
    end = {"event": "finished", "at": 120.0, "adapter": "x"}
    return [*out, {**end, "up": {"payload_bytes": 300, "messages": 6}, "down": {"payload_bytes": 180, "messages": 6}}]


def result(tmp_path: Path) -> dict[str, Any]:
    options = DemoOptions(out=tmp_path, rounds=2, sites=2)
    config = {"codec": "lora-ternary", "downlink-codec": "none"}
    return make_result(options, config, events(), LAYOUT, tmp_path)


def test_the_result_counts_messages_as_documented(tmp_path: Path) -> None:
    made = result(tmp_path)
    size = LAYOUT.numel
    assert made["messages"] == {"up": 4, "down": 6}
    assert made["baseline_bytes"] == {
        "bf16": {"up": 8 * size, "down": 12 * size},
        "fp32": {"up": 16 * size, "down": 24 * size},
        "int8": {"up": 4 * size, "down": 6 * size},
    }
    assert made["payload_bytes"] == {"up": 300, "down": 180}
    assert made["ratio_vs_bf16"] == {"up": round(8 * size / 300, 3), "down": round(12 * size / 180, 3)}
    assert (made["accuracy_start"], made["accuracy_end"]) == (0.0, 0.4)
    assert [r["accuracy"] for r in made["rounds"]] == [0.2, 0.4]
    assert made["codec"] == "topk(density=0.1)|ternary; head: int(bits=4)"
    documented = (ROOT / "docs" / "result.md").read_text()
    for key in (*made, "wall_seconds", "phase_seconds", "peak_memory_bytes"):
        assert f"`{key}`" in documented, key


def test_a_version_that_nobody_evaluated_is_an_error(tmp_path: Path) -> None:
    left = [e for e in events() if (e["event"], e.get("version")) != ("quality", 2)]
    with pytest.raises(ProcessError, match=r"versions \[2\]: no site has evaluated them"):
        make_result(
            DemoOptions(out=tmp_path, rounds=2, sites=2),
            {"codec": "none", "downlink-codec": "none"},
            left,
            LAYOUT,
            tmp_path,
        )


def test_an_out_that_is_no_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "preflight", lambda options: None)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"--out: .*file: must be a folder that can be written: Not a directory"):
        run.run_demo(DemoOptions(out=tmp_path / "file"), lambda event: None)
    assert (tmp_path / "file").read_text() == "mine"


class Stop(Exception):
    """Where processes would be started."""


@pytest.mark.parametrize("insecure", [False, True])
def test_tls_and_node_keys_unless_they_are_not_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, insecure: bool
) -> None:
    monkeypatch.setattr(run, "preflight", lambda options: None)

    def started(folder: Path, sites: dict[str, Path], *, port: int, certs: Path | None) -> None:
        files = sorted(p.name for p in certs.iterdir()) if certs else []
        raise Stop(list(sites), files)

    monkeypatch.setattr(run, "Federation", started)
    with pytest.raises(Stop) as caught:
        run.run_demo(DemoOptions(out=tmp_path, sites=2, insecure=insecure), lambda event: None)
    names, files = caught.value.args
    nodes = [f"{name}.node.{kind}" for name in names for kind in ("key", "pub")]
    assert files == ([] if insecure else ["ca.crt", *nodes, "server.crt", "server.key"])


@pytest.mark.parametrize("insecure", [False, True])
def test_a_federation_counts_with_tls_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, insecure: bool) -> None:
    """What is started, by stand-ins: a SuperNode is led through a relay to where the SuperLink listens."""
    certs = None if insecure else tmp_path / "certs"
    site = tmp_path / "north.toml"
    site.write_text('[site]\nname = "north"\nstate_dir = "north"\n')
    if certs:
        make_certs(CertOptions(hosts=("127.0.0.1",), nodes=("north",)), certs)
    commands: dict[str, list[str]] = {}
    with Federation(tmp_path, {"north": site}, certs=certs, warm=False) as it, socket.socket() as listener:
        monkeypatch.setattr(
            it.group, "start", lambda name, command, cwd: commands.update({name: [str(word) for word in command]})
        )
        monkeypatch.setattr(it.group, "finished", lambda name: True)
        listener.bind(("127.0.0.1", it.port))
        listener.listen()
        it.start()
        node = commands["supernode-north"]
        address = node[node.index("--superlink") + 1]
        assert address != f"127.0.0.1:{it.port}"
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=10) as near:
            near.sendall(b"x" * 1000)
            wait_until(lambda: wire_of(tmp_path).up == 1000, timeout=10, what="count", alive=lambda: None)
    assert ("register-north" in commands) is not insecure
    for name, words in (
        ("superlink", ["--enable-supernode-auth", "--ssl-keyfile"]),
        ("supernode-north", ["--root-certificates", "--auth-supernode-private-key"]),
    ):
        assert ("--insecure" in commands[name]) is insecure
        assert all((word in commands[name]) is not insecure for word in words)


def wire_of(folder: Path) -> Wire:
    found = read_wire(folder / "north")
    assert found is not None
    return found


def test_phases_add_up() -> None:
    assert measure_phases(events(), 98.0, 123.0) == {"start": 7.0, "rounds": 10.0, "evaluation": 5.0, "stop": 3.0}


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    plot_accuracy_against_bytes(result(tmp_path), tmp_path / "a.png")
    data_ = (tmp_path / "a.png").read_bytes()
    assert data_.startswith(b"\x89PNG")
    assert len(data_) > 10_000


def test_grids(tmp_path: Path) -> None:
    path = tmp_path / "g.toml"
    path.write_text('[fixed]\nrounds = 2\n[grid]\ncodec = ["none", "int8"]\nseed = [0, 1]\n')
    cells = Grid.load(path).cells()
    assert cells[0] == {"rounds": 2, "codec": "none", "seed": 0}
    assert len(cells) == 4
    for text, words in (
        ("[fixed]\nx = 1", r"fixed\.x"),
        ("[grid]\nseed = 1", "must be a list"),
        ("[other]", "unknown section"),
        ("[", "readable TOML"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            Grid.load(path)


def test_the_shipped_grid_is_valid() -> None:
    assert len(Grid.load(ROOT / "benchmarks" / "grids" / "small.toml").cells()) == 6


def test_ctrl_c_ends_with_130(tmp_path: Path) -> None:
    """SIGINT while the demo prepares: exit code 130, one word, no traceback."""
    script = Path(sys.executable).parent / "fedcompress"
    process = subprocess.Popen([script, "demo", "--out", tmp_path / "out"], stderr=subprocess.PIPE, text=True)
    logs = tmp_path / "out" / "work" / "logs"
    wait_until((logs / "superlink.log").exists, timeout=30, what="superlink", alive=lambda: None)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "stopped" in errors
    mine = [p for p in psutil.process_iter() if _mentions(p, str(tmp_path))]
    assert mine == []


def _mentions(process: psutil.Process, text: str) -> bool:
    try:
        return any(text in part for part in process.cmdline())
    except psutil.Error:
        return False
