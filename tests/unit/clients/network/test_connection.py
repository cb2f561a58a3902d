"""Whether a site is connected, and why not: from lines of real SuperNodes, and by a connection of our own."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from clients.network.connection import (
    ADVICE,
    Connection,
    ConnectionWatch,
    classify_reason,
    connection_file,
    describe_link,
    judge_log,
    read_connection,
)
from fedcompress.runtime.process_group import free_port

UP = "INFO:     Uvicorn running on http://127.0.0.1:58601 (Press CTRL+C to quit)\n"
CONNECTED = f"{UP}\x1b[92mINFO \x1b[0m:      SuperNode ID: 16254935417519050240\n"
RETRY = "\x1b[93mWARNING \x1b[0m:   Connection attempt failed, retrying in 0.79 seconds\n"
AGAIN = "\x1b[92mINFO \x1b[0m:      Connection successful after 3.10 seconds and 4 tries.\n"


def ended(detail: str) -> str:
    """Return what a SuperNode of Flower 1.41 writes when it gives up."""
    head = "\x1b[91mERROR \x1b[0m:     Exit Code: 305\nFailed to initialize the connection to the SuperLink.\n"
    return f"{UP}{head}{detail}\nThe SuperNode could not establish a connection to the SuperLink.\n{RETRY}"


VERIFY = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
DETAILS = {
    f"{VERIFY}unable to get local issuer certificate (_ssl.c:1006)": "certificate",
    f"{VERIFY}self-signed certificate in certificate chain (_ssl.c:1006)": "certificate",
    f"{VERIFY}Hostname mismatch, certificate is not valid for 'localhost'. (_ssl.c:1006)": "certificate-name",
    f"{VERIFY}IP address mismatch, certificate is not valid for '10.0.0.1'. (_ssl.c:1006)": "certificate-name",
    f"{VERIFY}certificate has expired (_ssl.c:1006)": "certificate-time",
    "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)": "tls",
    "[code: 2004] Failed to activate SuperNode.": "key",
}


@pytest.mark.parametrize("detail", DETAILS)
def test_the_detail_of_an_exit_is_the_reason(detail: str) -> None:
    assert judge_log(ended(detail)) == (False, detail)
    assert classify_reason(detail) == DETAILS[detail]
    assert DETAILS[detail] in ADVICE


@pytest.mark.parametrize(
    ("text", "connected"),
    [
        ("", None),
        (UP, None),
        (CONNECTED, True),
        (CONNECTED + RETRY, False),
        (CONNECTED + RETRY + AGAIN, True),
        (ended("x") + CONNECTED, True),
    ],
)
def test_the_last_sign_counts(text: str, connected: bool | None) -> None:
    assert judge_log(text)[0] is connected


def test_a_watch_says_what_changes(tmp_path: Path) -> None:
    """Nobody listens, then somebody does; the log's old lines do not count."""
    log = tmp_path / "supernode.log"
    log.write_text(CONNECTED)
    port = free_port()
    watch = ConnectionWatch(tmp_path, log, address=f"h:{port}", target=("127.0.0.1", port))
    assert watch.look() == ""
    log.write_text(CONNECTED + UP + RETRY)
    before = time.time()
    said = watch.look()
    assert said.startswith(f"no connection to h:{port} since ")
    assert "Connection refused -> nobody listens there" in said
    assert watch.look() == "", "said once"
    found = read_connection(tmp_path)
    assert found is not None
    assert (found.connected, found.kind) == (False, "refused")
    assert before - 1 < found.since < time.time() + 1
    log.write_text(CONNECTED + UP + RETRY + AGAIN)
    assert watch.look().startswith(f"connected to h:{port} since ")


def test_names_and_proxies(tmp_path: Path) -> None:
    log = tmp_path / "supernode.log"
    for target, through_proxy, kind in (
        (("no-such-host.invalid", 9), False, "name"),
        (("127.0.0.1", free_port()), True, "proxy"),
    ):
        log.write_text("")
        watch = ConnectionWatch(tmp_path, log, address="h:9", target=target, through_proxy=through_proxy)
        log.write_text(RETRY)
        assert ADVICE[kind] in watch.look()


def test_what_only_the_log_says_is_quoted(tmp_path: Path) -> None:
    """The port is open, so that Flower's own line is all that is known."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        watch = ConnectionWatch(tmp_path, tmp_path / "l", address="h:9", target=server.getsockname()[:2])
        (tmp_path / "l").write_text(RETRY)
        assert watch.look().endswith("Connection attempt failed, retrying in 0.79 seconds")


@pytest.mark.parametrize("text", ["", "[]", "{torn", '{"a": 1}'])
def test_notes_that_are_torn(tmp_path: Path, text: str) -> None:
    connection_file(tmp_path).write_text(text)
    assert read_connection(tmp_path) is None


def test_before_the_first_sign() -> None:
    assert describe_link(Connection(address="h:1", connected=None, since=0.0)).startswith("connecting to h:1")
