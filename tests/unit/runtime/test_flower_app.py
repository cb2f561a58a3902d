"""Loopback is never asked for through a proxy, whatever the user's environment says."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

from fedcompress.runtime.flower_app import environment, without_proxy


@pytest.mark.parametrize(
    "given",
    [{}, {"no_proxy": "a.example"}, {"NO_PROXY": "a.example, 127.0.0.1"}, {"no_proxy": "b", "NO_PROXY": "a.example"}],
)
@pytest.mark.parametrize("host", ["127.0.0.1:9000", "localhost:1", "127.0.0.1"])
def test_urllib_takes_loopback_without_a_proxy(
    given: dict[str, str], host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The standard library reads the variables as programs do; so the user's own hosts are still in them."""
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    assert urllib.request.proxy_bypass(host)
    assert not urllib.request.proxy_bypass("coordinator.example")
    assert bool(urllib.request.proxy_bypass("a.example")) == any("a.example" in text for text in given.values())


def test_grpc_has_a_list_of_its_own() -> None:
    assert "no_grpc_proxy" not in without_proxy({"no_proxy": "a"})
    found = without_proxy({"no_grpc_proxy": "a", "no_proxy": "b"})
    assert found["no_grpc_proxy"] == "a,127.0.0.1,localhost,::1"
    assert found["no_proxy"] == found["NO_PROXY"] == "b,127.0.0.1,localhost,::1"
