"""Sites count what a capture of their packets counts, and the ledger has it by round, with TLS and without."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path

import pytest

from fedcompress.identity.certs import CertOptions, make_certs
from fedcompress.runtime.process_group import wait_until
from fedcompress.traffic.relay import read_wire
from server.ledger.reader import LedgerReader
from tests.deployment import SITES, Deployment, write_base
from tests.faults.links import Link, ShapedProxy
from tests.faults.record import record
from tests.packets import Capture, can_capture

ROUNDS = 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and the initial adapter of a run on it."""
    return write_base(tmp_path_factory.mktemp("base"))


class Watched(Deployment):
    """Each site reaches the SuperLink by a port of its own, whose packets are captured."""

    def __init__(self, folder: Path, base: Path, stack: ExitStack, *, is_secure: bool) -> None:
        super().__init__(folder, base, ROUNDS, {})
        self.captures: dict[str, Capture] = {}
        self.links: dict[str, list[str]] = {}
        trust = ["--insecure"]
        if is_secure:
            make_certs(CertOptions(hosts=("127.0.0.1",)), folder / "certs")
            trust = ["--root-certificates", str(folder / "certs" / "ca.crt")]
            files = {"ca": "ca.crt", "certificate": "server.crt", "key": "server.key"}
            lines = "".join(f'{name} = "certs/{file}"\n' for name, file in files.items())
            lines += "supernode_keys = false\n"  # what is counted does not depend on them
            self.config.write_text(self.config.read_text().replace("insecure = true\n", lines))
        for name in SITES:
            proxy = ShapedProxy(Link(mbit=math.inf))
            stack.callback(proxy.close)
            address = proxy.to(f"127.0.0.1:{self.port}")
            self.captures[name] = stack.enter_context(Capture(int(address.rpartition(":")[2])))
            self.links[name] = ["--superlink", address, *trust]

    def sites_up(self) -> None:
        for name in SITES:
            self.start("site", "up", self.folder / f"{name}.toml", *self.links[name], environment=self.at_sites)

    def agrees(self, name: str) -> bool:
        """Whether the site's count is that of its packets now; both go on while it polls."""
        found, seen = read_wire(self.folder / name), self.captures[name].seen
        return found is not None and (found.up, found.down) == (seen.up, seen.down)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(not can_capture(), reason="needs CAP_NET_RAW")
@pytest.mark.parametrize("is_secure", [False, True], ids=["plain", "tls"])
def test_the_ledger_has_what_packets_carried(tmp_path: Path, base: Path, is_secure: bool) -> None:
    with ExitStack() as stack:
        it = Watched(tmp_path / "run", base, stack, is_secure=is_secure)
        stack.callback(it.end)
        it.sites_up()
        run = it.start("run", it.config, "--json")
        it.until(lambda: run.poll() is not None, "run", run)
        assert run.returncode == 0, (it.folder / "commands.log").read_text()
        for name in SITES:
            wait_until(lambda name=name: it.agrees(name), timeout=30, what=f"count of {name}", alive=lambda: None)
        counts = {name: read_wire(it.folder / name) for name in SITES}
        headers = sum(capture.seen.headers for capture in it.captures.values())
    assert all(capture.seen.lost == 0 for capture in it.captures.values())
    with LedgerReader(it.state) as found:
        (run_name,) = found.runs()
        sites, rounds = found.sites(run_name), found.rounds(run_name)
        transport = found.transport_bytes(run_name)
        last = dict(found._rows("SELECT site, MAX(payload + protocol) FROM message WHERE direction='up' GROUP BY site"))
    assert [row.site for row in sites] == list(SITES)
    for row in sites:
        count = counts[row.site]
        assert count is not None
        assert row.uplink_transport_bytes is not None
        assert row.downlink_transport_bytes is not None
        known = row.uplink_bytes + row.uplink_protocol_bytes + row.uplink_transport_bytes
        assert 0 <= count.up - known <= 50_000 + last[row.site], "but for what followed the last reply"
        known = row.downlink_bytes + row.downlink_protocol_bytes + row.downlink_transport_bytes
        assert 0 <= count.down - known <= 50_000
    assert all(row.uplink_transport_bytes and row.downlink_transport_bytes for row in rounds)
    first, second = (row.downlink_transport_bytes or 0 for row in rounds)
    assert second < first, "the app travels once"
    payload = sum(row.uplink_bytes + row.downlink_bytes for row in sites)
    protocol = sum(row.uplink_protocol_bytes + row.downlink_protocol_bytes for row in sites)
    rest = f"protocol {protocol:,}, transport {sum(n or 0 for n in transport.values()):,}, headers {headers:,}"
    record("traffic", "TLS" if is_secure else "without TLS", ROUNDS, f"payload {payload:,}, {rest}")
