"""What glibc is asked for; whether memory comes back is measured by the benchmarks."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from clients.runtime import malloc

CALLS = list[tuple[int, ...]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> CALLS:
    """What mallopt and malloc_trim are called with."""
    made: CALLS = []
    library = SimpleNamespace(mallopt=lambda *pair: made.append(pair), malloc_trim=lambda pad: made.append((pad,)))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    return made


def test_the_numbers_of_options_are_those_of_malloc_h(calls: CALLS) -> None:
    malloc.return_large_blocks()
    assert calls == [(-3, 1 << 20)]
    calls.clear()
    malloc.keep_until_trimmed()
    assert sorted(calls) == [(-8, 1), (-3, 32 << 20), (-2, 32 << 20), (-1, 512 << 20)]
    calls.clear()
    malloc.release_memory()
    assert calls == [(0,)]


def test_a_threshold_of_the_environment_is_kept(calls: CALLS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    malloc.return_large_blocks()
    malloc.keep_until_trimmed()
    assert calls == []


def test_nothing_is_done_where_there_is_no_glibc(calls: CALLS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())  # as musl
    malloc.keep_until_trimmed()
    malloc.release_memory()
    monkeypatch.setattr(sys, "platform", "darwin")
    malloc.return_large_blocks()
    malloc.release_memory()
    assert calls == []


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_a_real_process_takes_all_options() -> None:
    """mallopt returns 1 for what it takes; the process is one of its own, whose heap may be set."""
    program = (
        "import ctypes; from clients.runtime import malloc; call = ctypes.CDLL(None).mallopt\n"
        "print([call(key, value) for key, value in malloc.KEPT.items()])\n"
        "malloc.keep_until_trimmed(); malloc.release_memory(); malloc.return_large_blocks()"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["[1,", "1,", "1,", "1]"]
