"""A real worker behind its socket: what it takes, and what it signs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from clients import worker_client
from clients.commands.checks.base import Subject
from clients.commands.checks.identity import check_identity
from clients.commands.up import Options, complete_options, node_command
from clients.site import SiteConfig
from fedcompress.config.train_task import TrainTask
from fedcompress.errors import ConfigError, TrainingError
from fedcompress.identity import PrivateKey
from fedcompress.identity.tasks import sign_task
from fedcompress.wire import Limits, digest_of, seal_of, sign_envelope
from tests.unit.clients.worker.test_service import LAYOUT, START, Worker, task

IDENTITY = '[identity]\nkey="keys/north.key"\ncoordinator="keys/coordinator.pub"\n'
LIMITS = Limits.for_numel(LAYOUT.numel)
OWN, NORTH = PrivateKey.new("coordinator"), PrivateKey.new("north")
SIGNED = sign_envelope(START, OWN.sign)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    NORTH.save(tmp_path / "keys")
    OWN.save(tmp_path / "keys")
    served = Worker(tmp_path, 1, more=IDENTITY)
    yield served
    served.stop()


def ask(worker: Worker, job: TrainTask, bundle: bytes = SIGNED, signature: str | None = None) -> bytes:
    made = sign_task(OWN, job.to_json(), bundle) if signature is None else signature
    return worker_client.run_round(worker.file, worker.site, job, bundle, lambda text: None, signature=made)[0]


def test_what_is_sent_is_signed(worker: Worker) -> None:
    worker.rank()
    update = ask(worker, task(1))
    report = ask(worker, replace(task(2), steps=0))
    for data in (update, report):
        seal = seal_of(data, LIMITS)
        assert NORTH.public.verifies(seal.signature, seal.statement)


def test_what_is_taken(worker: Worker) -> None:
    rank = worker.rank()
    stranger = PrivateKey.new("stranger")
    bad = sign_envelope(START, stranger.sign)
    for job, bundle, signature, code in (
        (task(2), SIGNED, "", "signature"),
        (task(2), SIGNED, sign_task(stranger, task(2).to_json(), SIGNED), "signature"),
        (task(2), SIGNED, sign_task(OWN, task(1).to_json(), SIGNED), "signature"),
        (task(2), START, None, "signature"),
        (task(2), bad, None, "signature"),
        (replace(task(2), site="south"), SIGNED, None, "other-site"),
    ):
        with pytest.raises(TrainingError) as caught:
            ask(worker, job, bundle, signature)
        assert caught.value.code == code
    assert rank.jobs == 0
    assert worker.session.snapshot("run") is None
    ask(worker, replace(task(2), site="north"))
    with pytest.raises(TrainingError) as caught:
        ask(worker, task(1))
    assert caught.value.code == "replay"
    assert rank.jobs == 1


def test_another_key_signs_a_stored_reply(tmp_path: Path) -> None:
    """Also where it was stored before there was a key: the digest in the outbox follows."""
    plain = Worker(tmp_path, 1)
    plain.rank()
    first = plain.train(task(1))[0]
    plain.stop()
    assert not seal_of(first, LIMITS).signature
    digests = []
    for _ in range(2):
        OWN.save(tmp_path / "keys", force=True)
        key = PrivateKey.new("north")
        key.save(tmp_path / "keys", force=True)
        again = Worker(tmp_path, 1, more=IDENTITY)
        try:
            data = ask(again, task(1))  # no rank is there: it is not trained again
            seal = seal_of(data, LIMITS)
            assert key.public.verifies(seal.signature, seal.statement)
            digests.append(digest_of(data))
            if len(digests) == 2:
                assert again.session.reconcile_outbox("run", 2, b"x" * 32, [digests[-1].hex()]) == 0
        finally:
            again.stop()
    assert digests[0] == digests[1] != digest_of(first)


def test_refusals_are_remembered(worker: Worker) -> None:
    worker.rank()
    ask(worker, replace(task(2), refused=("1: revoked: signed by a key that is revoked",)))
    channel, stub = worker.stub()
    with channel:
        from fedcompress.proto.v1 import worker_pb2

        status = stub.Status(worker_pb2.StatusRequest())
    assert (status.last_error_code, status.last_error_round) == ("refused", 1)
    assert status.last_error == "as revoked: signed by a key that is revoked"


def test_keys_of_site_toml(worker: Worker, tmp_path: Path) -> None:
    site = worker.site
    assert (site.identity.key, site.identity.coordinator) == (
        tmp_path / "keys" / "north.key",
        tmp_path / "keys" / "coordinator.pub",
    )
    checks = check_identity(Subject(file=worker.file, site=site))
    assert [check.status for check in checks] == ["ok", "ok"]
    (tmp_path / "keys" / "north.key").chmod(0o644)
    assert [check.status for check in check_identity(Subject(file=worker.file, site=site))] == ["fail"]
    worker.file.write_text(worker.file.read_text().replace("coordinator.pub", "none.pub"))
    with pytest.raises(ConfigError, match=r"identity\.coordinator: .*must be an existing file"):
        SiteConfig.load(worker.file)


def test_the_way_to_the_superlink(worker: Worker, tmp_path: Path) -> None:
    """From site.toml, TLS unless --insecure is said; options come first."""
    file = worker.file
    with pytest.raises(ConfigError, match="--superlink: nothing"):
        complete_options(Options(site="x"), worker.site)
    (tmp_path / "ca.crt").write_text("")
    (tmp_path / "node.key").write_text("")
    plain = file.read_text()
    file.write_text(plain + '[superlink]\naddress="c.example:8000"\nroot_certificates="ca.crt"\nnode_key="node.key"\n')
    site = SiteConfig.load(file)
    command = [str(word) for word in node_command(complete_options(Options(site="x"), site), file)]
    assert "--insecure" not in command
    for option, value in (
        ("--superlink", "c.example:8000"),
        ("--root-certificates", str(tmp_path / "ca.crt")),
        ("--auth-supernode-private-key", str(tmp_path / "node.key")),
    ):
        assert command[command.index(option) + 1] == value
    assert complete_options(Options(site="x", superlink="d.example:1"), site).superlink == "d.example:1"
    with pytest.raises(ConfigError, match="--insecure"):
        complete_options(Options(site="x", insecure=True), site)
    for text in ('address="c.example"', 'address="c.example:0"'):
        file.write_text(f"{plain}[superlink]\n{text}\n")
        with pytest.raises(ConfigError, match="--superlink"):
            complete_options(Options(site="x"), SiteConfig.load(file))
