"""Signatures at admission, and a federation in which everybody signs."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clients.signing import SiteIdentity
from fedcompress.config.train_task import TrainTask
from fedcompress.errors import AdmissionError, ConfigError, IdentityError, TrainingError
from fedcompress.identity import PrivateKey, Registry
from fedcompress.identity.tasks import check_task, sign_task
from fedcompress.wire import Kind, Limits, seal_of, sign_envelope, split_bundle, unpack
from server.round import signatures
from server.round.admission import admit_reply
from server.round.signatures import SignaturePolicy
from tests.unit.server.memory import World
from tests.unit.server.samples import EXPECTED, LAYOUT, update

LIMITS = Limits.for_numel(LAYOUT.numel)


def seal_again(data: bytes, at: int) -> bytes:
    """Another bit at a place, with the right SHA-256: only the signature can tell."""
    from hashlib import sha256

    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed[:-96]) + sha256(changed[:-96]).digest() + data[-64:]


class Keys:
    """A registry with keys of two sites, one that is revoked, and one that nobody knows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.north, self.south, self.old, self.foreign = (PrivateKey.new(n) for n in ("north", "south", "old", "x"))
        with Registry(folder) as registry:
            registry.register(self.north.public, "north")
            registry.register(self.south.public, "south")
            registry.register(self.old.public, "north")
            registry.revoke(self.old.public.id)

    def admit(self, data: bytes, *, claimed: str = "north", required: bool = True) -> str:
        expected = replace(EXPECTED, signatures=SignaturePolicy(self.folder, required))
        return admit_reply(data, expected, Kind.UPDATE, set(), claimed)[0].header.site


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def cases(keys: Keys) -> dict[str, list[bytes]]:
    good = sign_envelope(update(), keys.north.sign)
    return {
        "signature": [
            update(),
            good[:-1] + bytes([good[-1] ^ 1]),
            seal_again(good, 30),  # in the header
            seal_again(good, -97),  # in the last section
            sign_envelope(update(), keys.north.sign)[:-64] + keys.north.sign(seal_of(good, LIMITS).digest),
        ],
        "revoked": [sign_envelope(update(), keys.old.sign)],
        "swapped-site": [sign_envelope(update(), keys.south.sign)],
        "unknown-key": [sign_envelope(update(site="east"), keys.foreign.sign)],
    }


@pytest.mark.parametrize("code", signatures.REASONS)
def test_refused(keys: Keys, code: str) -> None:
    for data in cases(keys)[code]:
        with pytest.raises(AdmissionError) as caught:
            keys.admit(data, claimed="east" if code == "unknown-key" else "north")
        assert caught.value.code == code


def test_taken(keys: Keys) -> None:
    """Whatever site is claimed beside the envelope; the new key of a site beside its revoked one."""
    for claimed in ("north", "south", "", "nobody"):
        assert keys.admit(sign_envelope(update(), keys.north.sign), claimed=claimed) == "north"


def test_not_required(keys: Keys) -> None:
    """Who has no key is taken at his word; who has one cannot be spoken for without it."""
    assert keys.admit(update(site="east"), required=False) == "east"
    assert keys.admit(sign_envelope(update(site="east"), keys.foreign.sign), required=False) == "east"
    for data, code in (
        (update(), "signature"),
        (sign_envelope(update(), keys.foreign.sign), "signature"),
        (sign_envelope(update(site="east"), keys.north.sign), "swapped-site"),
        (sign_envelope(update(), keys.old.sign), "revoked"),
    ):
        with pytest.raises(AdmissionError) as caught:
            keys.admit(data, required=False)
        assert caught.value.code == code


def test_a_signature_cannot_be_cut_off(keys: Keys) -> None:
    good = sign_envelope(update(), keys.north.sign)
    with pytest.raises(AdmissionError, match="promised"):
        keys.admit(good[:-64])
    bare = good[:6] + b"\0" + good[7:-64]
    with pytest.raises(AdmissionError, match="SHA-256"):
        keys.admit(bare)


def test_nothing_is_decoded_before_the_signature(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> Any:
        raise AssertionError("decoded")

    monkeypatch.setattr("server.round.admission.unpack", never)
    monkeypatch.setattr("server.round.admission.decode_chunks", never)
    for code, datas in cases(keys).items():
        if code != "swapped-site":  # who must have signed is in the header
            for data in datas:
                with pytest.raises(AdmissionError):
                    keys.admit(data, claimed="east" if code == "unknown-key" else "north")


def test_replayed_to_another_round(keys: Keys) -> None:
    """A right signature of an old update: run, round and base are what refuse it."""
    for changes, code in (
        ({"round": 2}, "round"),
        ({"run": "other"}, "run"),
        ({"base_digest": b"x" * 32}, "base-digest"),
    ):
        with pytest.raises(AdmissionError) as caught:
            keys.admit(sign_envelope(update(**changes), keys.north.sign))
        assert caught.value.code == code


# --- a federation in memory in which everybody signs ---


class SignedWorld(World):
    """All sites and the coordinator have keys; signatures are required."""

    def __init__(self, folder: Path, names: tuple[str, ...] = ("north", "south", "west")) -> None:
        super().__init__(folder, names)
        state = folder / "coordinator"
        self.own = PrivateKey.new("coordinator")
        self.own.save(state)
        self.keys = {name: PrivateKey.new(name) for name in names}
        with Registry(state) as registry:
            for site in self.sites.values():
                registry.register(self.keys[site.name].public, site.name)
                site.identity = SiteIdentity(self.keys[site.name], self.own.public)

    def config(self, **changes: Any) -> Any:
        return super().config(**{"require_signatures": True, **changes})

    def refusals(self) -> list[tuple[str, str]]:
        with sqlite3.connect(self.folder / "coordinator" / "ledger.db") as db:
            return db.execute("SELECT site, code FROM refusal ORDER BY id").fetchall()


def test_everybody_signs(tmp_path: Path) -> None:
    """The result is that of a federation without signatures: they are no input of anything."""
    plain = World(tmp_path / "plain")
    plain.run()
    world = SignedWorld(tmp_path / "signed")
    transport = world.run()
    assert world.result() == plain.result()
    assert world.refusals() == []
    for _, task, payload, signature in transport.sent:
        check_task(world.own.public, signature, task.to_json(), payload)
        for piece in split_bundle(payload, LIMITS):
            assert world.own.public.verifies(seal_of(piece, LIMITS).signature, seal_of(piece, LIMITS).statement)
    assert {t.site for _, t, _, _ in transport.sent if t.round == 1} == {""}
    assert {t.site for _, t, _, _ in transport.sent if t.round == 2} == {"north", "south", "west"}


def test_a_site_with_a_wrong_key_is_refused_and_told(tmp_path: Path) -> None:
    world = SignedWorld(tmp_path)
    south = next(s for s in world.sites.values() if s.name == "south")
    south.identity = SiteIdentity(world.keys["north"], world.own.public)
    world.run(rounds=2)
    assert world.refusals() == [("south", "swapped-site")] * 3
    assert [text.split(": ")[:2] for text in south.refused] == [
        ["1", "swapped-site"],
        ["2", "swapped-site"],
        ["3", "swapped-site"],
    ], "the last one with the word that the run has ended"
    events = [e for e in world.events if e["event"] == "refused"]
    assert {(e["site"], e["code"]) for e in events} == {("south", "swapped-site")}


def test_revoked_while_the_run_goes_on(tmp_path: Path) -> None:
    """It counts from the next reply on; nothing is started again."""
    world = SignedWorld(tmp_path)

    def fate(what: str, node: int, round_: int) -> bool:
        if what == "send" and round_ == 3:
            with Registry(tmp_path / "coordinator") as registry:
                registry.revoke("west")
        return True

    world.run(fate)
    assert world.refusals() == [("west", "revoked")] * 3  # rounds 3 and 4, and the last evaluation
    with Registry(tmp_path / "coordinator") as registry:
        registry.register(PrivateKey.new("west2").public, "west")


def test_a_registry_from_a_backup_has_no_later_revocations(tmp_path: Path) -> None:
    """A revoked key is good again, which nothing can notice; revoked again, it is refused as before."""
    world, path = SignedWorld(tmp_path), tmp_path / "coordinator" / "keys.db"
    with sqlite3.connect(path) as found, sqlite3.connect(tmp_path / "backup.db") as backup:
        found.backup(backup)
    with Registry(path.parent) as registry:
        registry.revoke(world.keys["west"].public.id)
    world.run(rounds=1)
    assert world.refusals() == [("west", "revoked")] * 2  # with the last evaluation
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    shutil.copy(tmp_path / "backup.db", path)
    world.run(rounds=2)
    assert len(world.refusals()) == 2
    with Registry(path.parent) as registry:
        registry.revoke(world.keys["west"].public.id)
    world.run(rounds=3)
    assert len(world.refusals()) == 4


def test_another_coordinator_is_refused_by_all_sites(tmp_path: Path) -> None:
    world = SignedWorld(tmp_path)
    PrivateKey.new("coordinator").save(tmp_path / "coordinator", force=True)
    with pytest.raises(TrainingError, match="0 updates admitted"):
        world.run()
    assert {code for _, code in world.refusals()} == {"signature"}
    assert [s.trained for s in world.sites.values()] == [0, 0, 0]


def test_keys_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="require-signatures: True: needs the coordinator's own key"):
        World(tmp_path).run(require_signatures=True)


def test_resumed_with_other_keys(tmp_path: Path) -> None:
    """After round 2 the coordinator and a site change their keys: the run goes on."""
    plain = World(tmp_path / "plain")
    plain.run()
    world = SignedWorld(tmp_path / "signed")
    world.run(rounds=2)
    state = tmp_path / "signed" / "coordinator"
    own, north = PrivateKey.new("coordinator"), PrivateKey.new("north")
    own.save(state, force=True)
    with Registry(state) as registry:
        registry.revoke("north")
        registry.register(north.public, "north")
    for site in world.sites.values():
        key = north if site.name == "north" else world.keys[site.name]
        site.identity = SiteIdentity(key, own.public)
    world.run()
    assert world.result() == plain.result()
    assert world.refusals() == []


# --- what a site takes ---


def sent(world: SignedWorld) -> list[tuple[int, TrainTask, bytes, str]]:
    return world.run(rounds=2).sent


def test_a_site_takes_only_what_is_signed_for_it(tmp_path: Path) -> None:
    world = SignedWorld(tmp_path)
    messages = sent(world)
    node, task, payload, signature = next(m for m in messages if m[1].round == 2)
    identity = world.sites[node].identity
    identity.check(signature, task.to_json(), payload)
    other = PrivateKey.new("other")
    stranger = sign_task(other, task.to_json(), payload)
    bare = unsigned(payload)
    bad: list[tuple[str, TrainTask, bytes]] = [
        ("", task, payload),
        ("zz", task, payload),
        (stranger, task, payload),
        (signature, replace(task, lr=task.lr * 2), payload),
        (signature, replace(task, round=3), payload),
        (signature, replace(task, site="south"), payload),
        (signature, replace(task, merged=()), payload),
        (signature, task, payload[:-1]),
        (signature, task, next(m[2] for m in messages if m[1].round == 1)),
        (sign_task(world.own, task.to_json(), bare), task, bare),
    ]
    for text, changed, bundle in bad:
        with pytest.raises(IdentityError) as caught:
            identity.check(text, changed.to_json(), bundle)
        assert caught.value.code == "signature"


def unsigned(bundle: bytes) -> bytes:
    from fedcompress.wire import pack

    pieces = (unpack(piece, LIMITS) for piece in split_bundle(bundle, LIMITS))
    return b"".join(pack(e.header, e.sections) for e in pieces)


def test_an_old_task_is_refused(tmp_path: Path) -> None:
    """Kept by somebody and sent again: it would lead back to version 0, and the residual would count twice."""
    world = SignedWorld(tmp_path)
    messages = sent(world)
    for node, task, payload, signature in messages:
        site = world.sites[node]
        before = site.session.snapshot("run")
        if task.round < 3:
            with pytest.raises(IdentityError) as caught:
                site.answer(task, payload, signature)
            assert caught.value.code == "replay"
        else:  # the newest may come again: the answer is the same
            site.answer(task, payload, signature)
        after = site.session.snapshot("run")
        assert before is not None
        assert after is not None
        assert (after.version, after.digest) == (before.version, before.digest)
        assert all((after.residual[n] == before.residual[n]).all() for n in after.residual)
