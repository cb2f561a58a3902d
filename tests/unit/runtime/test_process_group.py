"""Groups of processes end as a whole, and say why one of them has ended; ports are checked before they are used."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fedcompress.errors import ConfigError, ProcessError
from fedcompress.runtime.process_group import ProcessGroup, check_port, free_port, listening, wait_until


def test_a_busy_port_is_refused_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        assert listening(port)
        with pytest.raises(ConfigError) as caught:
            check_port("--port", port)
    assert str(caught.value).startswith(f"--port: {port}: ")
    assert "choose another port" in str(caught.value)
    assert "\n" not in str(caught.value)
    check_port("--port", free_port())


STUBBORN = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {STUBBORN!r}])"


def test_a_group_ends_whole_trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcompress.runtime.process_group.GRACE", 0.5)
    with ProcessGroup(tmp_path, {"X": "1"}) as group:
        parent = group.start("parent", [sys.executable, "-c", PARENT], cwd=tmp_path)
        log = tmp_path / "parent.log"
        wait_until(lambda: "up" in log.read_text(), timeout=20, what="child", alive=lambda: group.check("parent"))
        tree = psutil.Process(parent.pid).children(recursive=True)
        assert tree
        assert len(group.memory()) == 2
    assert parent.poll() is not None
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in tree)


ORPHANS = """
import pathlib, signal, sys
from fedcompress.runtime.process_group import ProcessGroup, wait_until
signal.alarm(40)  # whatever happens, this process ends
folder = pathlib.Path(sys.argv[1])
with ProcessGroup(folder, {}) as group:
    group.start("x", ["sh", "-c", "sleep 600 & echo up; wait"], cwd=folder)
    log = folder / "x.log"
    wait_until(lambda: "up" in log.read_text(), timeout=20, what="child", alive=lambda: None)
print("stopped")
"""
HEEDLESS = """
import ctypes, subprocess, sys
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans come to this process, which reaps none of them
raise SystemExit(subprocess.run([sys.executable, "-c", *sys.argv[1:]]).returncode)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's child subreaper")
def test_a_group_ends_where_nobody_reaps_orphans(tmp_path: Path) -> None:
    """As in a container whose first process reaps nothing: zombies stay for ever, and are not waited for."""
    done = subprocess.run(
        [sys.executable, "-c", HEEDLESS, ORPHANS, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "stopped\n"


def test_a_process_that_ends_is_reported_with_its_last_line(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path, {}) as group:
        process = group.start("dies", [sys.executable, "-c", "print('why'); raise SystemExit(3)"], cwd=tmp_path)
        process.wait()
        with pytest.raises(ProcessError, match=r"dies: ended with exit code 3: why \(see .*dies.log\)"):
            group.check()
        with pytest.raises(ProcessError, match="not ready after 0 s"):
            wait_until(lambda: False, timeout=0, what="x", alive=lambda: None)


def test_the_last_line_is_not_the_edge_of_a_box(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("before\n╭─ Error ─╮\n│ no way  │\n│ out     │\n╰─────────╯\n")
    assert ProcessGroup(tmp_path, {}).last_line("a") == f"no way out (see {tmp_path / 'a.log'})"
