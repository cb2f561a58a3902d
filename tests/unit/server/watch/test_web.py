"""The web server: who may ask, what is answered, and that nothing breaks out of the page or the metrics."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterator
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fedcompress.errors import ConfigError
from server.watch import page
from server.watch.view import Snapshot, take_snapshot
from server.watch.web import Looks, WatchServer, is_own_host, serve
from tests.unit.server.watch.world import HOSTILE, poison

TOKEN = "0123456789abcdef-token"
TAGS = {
    "html", "head", "meta", "title", "style", "body", "div", "main", "header", "h1", "h2", "span", "p", "b", "i",
    "progress", "section", "table", "thead", "tbody", "tr", "th", "td", "svg", "g", "line", "polyline", "text",
    "circle", "script",
}  # fmt: skip


def ask(server: WatchServer, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    port = urlsplit(server.url).port
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, path, headers=headers)
        reply = connection.getresponse()
        return reply.status, dict(reply.getheaders()), reply.read().decode()


@pytest.fixture
def server(finished_run: Path) -> Iterator[WatchServer]:
    with serve(finished_run) as started:
        yield started


@pytest.fixture
def guarded(finished_run: Path) -> Iterator[WatchServer]:
    with serve(finished_run, token=TOKEN) as started:
        yield started


def test_the_three_paths(server: WatchServer, finished_run: Path) -> None:
    status, headers, text = ask(server)
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert all(name in text for name in ("north", "south", "west", "Accuracy against bytes", "<svg"))
    status, headers, text = ask(server, "/api/snapshot")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    expected = take_snapshot(finished_run).to_dict()
    assert {**json.loads(text), "at": 0} == json.loads(json.dumps({**expected, "at": 0}))
    status, headers, text = ask(server, "/metrics")
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert 'fedcompress_rounds_done_total{run="run"} 4.0' in text
    assert ask(server, "/../ledger.db")[0] == ask(server, "/api")[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "X"])
def test_only_get(server: WatchServer, method: str) -> None:
    status, headers, text = ask(server, "/", method)
    assert status == (405 if method not in ("TRACE", "X") else 501)
    assert "north" not in text
    assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_headers_allow_nothing_from_elsewhere(server: WatchServer) -> None:
    for path in ("/", "/api/snapshot", "/metrics", "/nothing"):
        _, headers, _ = ask(server, path)
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer"
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert not re.search(r"unsafe|http|\*", policy)
        assert "Python" not in headers["Server"]


@pytest.mark.parametrize(
    "name", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[x", "localhost.evil"]
)
def test_other_names_are_refused(server: WatchServer, name: str) -> None:
    status, _, text = ask(server, Host=name)
    assert (status, "north" in text) == (421, False)


def test_names_that_are_ours(finished_run: Path) -> None:
    with serve(finished_run, allowed_hosts=["Watch.Example"]) as server:
        for name in ("localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:5", "watch.example", socket.gethostname()):
            assert ask(server, Host=name)[0] == 200, name
    assert not is_own_host("evil.example", server.names)


def test_a_token(guarded: WatchServer) -> None:
    refused = [
        ask(guarded),
        ask(guarded, "/?token="),
        ask(guarded, "/?token=" + TOKEN[:-1]),
        ask(guarded, "/?token=" + TOKEN + "x"),
        ask(guarded, "/?token=%F0%9F%92%A5"),
        ask(guarded, "/?" + "&".join(["a=1"] * 5) + "&token=x"),
        ask(guarded, "//[x?token=["),
        ask(guarded, Authorization="Bearer x"),
        ask(guarded, Authorization=f"Basic {TOKEN}"),
        ask(guarded, "/api/snapshot"),
        ask(guarded, "/metrics"),
    ]
    assert {status for status, _, _ in refused} == {401}
    assert not any("north" in text or TOKEN in text for _, _, text in refused)
    assert all(headers["WWW-Authenticate"] == "Bearer" for _, headers, _ in refused)
    for given in (ask(guarded, f"/?token={TOKEN}"), ask(guarded, Authorization=f"bearer {TOKEN}")):
        assert given[0] == 200
        assert TOKEN not in given[2]
    assert ask(guarded, "/metrics", Authorization=f"Bearer {TOKEN}")[0] == 200
    assert ask(guarded, f"/?token={TOKEN}", Host="evil.example")[0] == 421


def test_too_many_fields_are_no_crash(guarded: WatchServer, capfd: pytest.CaptureFixture[str]) -> None:
    status, _, _ = ask(guarded, "/?" + "&".join(["token=x"] * 50))
    assert status == 401
    assert capfd.readouterr().err == ""


def test_a_token_is_made_for_other_addresses(finished_run: Path) -> None:
    with serve(finished_run, "0.0.0.0") as first, serve(finished_run, "0.0.0.0") as second:
        assert len(first.token) >= 24
        assert first.token != second.token
        assert ask(first)[0] == 401
        assert ask(first, f"/?token={first.token}")[0] == 200
    for host in ("127.0.0.1", "localhost", "127.8.9.1"):
        with serve(finished_run, host) as third:
            assert third.token == ""


@pytest.mark.parametrize("token", ["short", "with space in it all", "é" * 20, "tab\t" * 8])
def test_bad_tokens_are_refused_and_not_shown(finished_run: Path, token: str) -> None:
    with pytest.raises(ConfigError, match="--token") as error:
        serve(finished_run, token=token)
    assert token not in str(error.value)


def test_a_port_that_is_taken(server: WatchServer, finished_run: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be listened at"):
        serve(finished_run, port=urlsplit(server.url).port or 0)
    with pytest.raises(ConfigError, match="cannot be listened at"):
        serve(finished_run, "no-such-host.invalid")


def test_a_wrong_folder_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        serve(tmp_path)


def test_a_ledger_that_goes_away_is_an_answer(state: Path) -> None:
    with WatchServer(Looks(lambda: take_snapshot(state)), "127.0.0.1", 0, "", ()) as server:
        for path in state.glob("ledger.db*"):
            path.write_bytes(b"x" * 5000)
        status, _, text = ask(server)
        assert (status, "cannot be read" in text) == (503, True)


def test_looks_are_shared(finished_run: Path) -> None:
    now, taken = [0.0], list[float]()
    shown = take_snapshot(finished_run)

    def look() -> Snapshot:
        taken.append(now[0])
        now[0] += 0.5  # what it takes
        return shown

    looks = Looks(look, lambda: now[0])
    for at in (0.0, 0.9, 2.4, 2.6, 3.0):
        now[0] = max(now[0], at)
        looks()
    assert taken == [0.0, 2.6], "a look that takes 0.5 s is kept for 2.5 s"


def test_garbage_is_answered_or_dropped(server: WatchServer) -> None:
    port = urlsplit(server.url).port or 0
    for data in (b"\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"a" * 70000, b"\r\n"):
        with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            reply = connection.recv(65536)
            assert b"north" not in reply
            assert b"Traceback" not in reply
    assert ask(server)[0] == 200


class Elements(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_hostile_names_stay_text(state: Path) -> None:
    poison(state)
    with serve(state) as server:
        _, _, text = ask(server)
    found = Elements(text)
    assert set(found.tags) <= TAGS
    assert found.tags.count("script") == 1
    assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("style", "href", "src")]
    shown = "\n".join(found.texts)
    assert "<script>document.title='owned'</script>" in shown, "it is not shown at all"
    assert "\\x1b[31mred" in shown
    assert not re.search("[\x00\x1b\u202e]", text)
    assert sum(name[:5] in shown for name in HOSTILE[:2]) == 2


def test_hostile_labels_stay_labels(state: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    clean = {family.name for family in families(state)}
    poison(state)
    with serve(state) as server:
        text = ask(server, "/metrics")[2]
    parsed = {family.name: family for family in text_string_to_metric_families(text)}
    assert set(parsed) == clean
    sent = parsed["fedcompress_payload_bytes"].samples
    assert {s.labels["site"] for s in sent} == {*HOSTILE, "north", "south", "west"}
    assert {s.value for s in sent if s.labels["site"] in HOSTILE} == {100.0}
    assert {s.labels["code"] for s in parsed["fedcompress_refusals"].samples} == set(HOSTILE)
    total = take_snapshot(state).totals
    assert sum(s.value for s in sent) == total["up"].payload_bytes + total["down"].payload_bytes


def families(state: Path) -> list[object]:
    from prometheus_client.parser import text_string_to_metric_families

    with serve(state) as server:
        return list(text_string_to_metric_families(ask(server, "/metrics")[2]))


def test_metrics_are_the_snapshot_s(finished_run: Path) -> None:
    shown = take_snapshot(finished_run)
    samples = {
        (s.name, *(v for k, v in sorted(s.labels.items()) if k != "run")): s.value
        for family in families(finished_run)
        for s in family.samples  # type: ignore[attr-defined]
    }
    assert samples["fedcompress_accuracy",] == shown.accuracy
    assert samples["fedcompress_loss",] == shown.loss
    assert samples["fedcompress_updates_merged_total",] == 12
    assert samples["fedcompress_state", "finished"] == 1
    assert sum(value for key, value in samples.items() if key[0] == "fedcompress_state") == 1
    assert samples["fedcompress_awaited_sites",] == 0
    for row in shown.traffic:
        key = (row.direction, row.kind, row.site)
        assert samples["fedcompress_payload_bytes_total", *key] == row.payload_bytes
        assert samples["fedcompress_protocol_bytes_total", *key] == row.protocol_bytes
    assert samples["fedcompress_baseline_bytes_total", "up", "int8"] == shown.baselines["int8"].uplink_bytes


def test_the_policy_names_the_page_s_own_style_and_script(server: WatchServer) -> None:
    _, headers, text = ask(server)
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        content = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert content is not None
        assert f"{directive} {page._hash_source(content[1])}" in headers["Content-Security-Policy"]
