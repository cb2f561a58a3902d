"""The ledger: transactions, tampering, several runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedcompress.adapters import seeded_init
from fedcompress.errors import MismatchError, StateError
from fedcompress.types import add, zeros
from server.ledger.ledger import Ledger
from tests.support import lora_layout
from tests.unit.server.samples import CODEC, LAYOUT, grow, publish


def test_transactions_roll_back(ledger: Ledger) -> None:
    start = seeded_init(LAYOUT, 1)
    published = publish(ledger, 0, start, b"envelope")

    def crash() -> None:
        with ledger.transaction():
            ledger.publish(1, b"x" * 32, b"other", add(start, start), zeros(LAYOUT))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        crash()
    found = ledger.published(LAYOUT)
    assert found is not None
    assert (found.version, found.digest) == (0, published.digest)
    assert ledger.rounds_done == 0


def test_reopened_and_tampered(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "run")
    ledger.begin(LAYOUT, "{}", "")
    grow(ledger, 2, CODEC)
    assert ledger.collect_garbage() > 0
    ledger.close()
    ledger = Ledger(tmp_path, "run")
    ledger.begin(LAYOUT, "{}", "ab")
    found = ledger.published(LAYOUT)
    assert found is not None
    assert found.version == 2
    assert len(ledger.envelopes(None)) == 3
    with pytest.raises(MismatchError, match="another adapter or base"):
        ledger.begin(lora_layout(modules=1), "{}", "")
    for path in (tmp_path / "blobs").iterdir():
        path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(StateError, match="none of 2 versions"):
        ledger.published(LAYOUT)
    assert "SHA-256" in ledger.notes[0]


def test_runs_share_a_folder(tmp_path: Path) -> None:
    one, two = Ledger(tmp_path, "one"), Ledger(tmp_path, "two")
    for ledger in (one, two):
        ledger.begin(LAYOUT, "{}", "")
        grow(ledger, 1, CODEC)
    one.collect_garbage()
    assert two.published(LAYOUT) is not None


def test_a_fingerprint_that_is_given_later_counts(tmp_path: Path) -> None:
    """The run was begun without one, and no site has answered yet."""
    ledger = Ledger(tmp_path, "run")
    ledger.begin(LAYOUT, "{}", "")
    assert ledger.base_fingerprint == ""
    ledger.begin(LAYOUT, "{}", "ab")
    assert ledger.base_fingerprint == "ab"
    ledger.begin(LAYOUT, "{}", "")
    assert ledger.base_fingerprint == "ab"
    with pytest.raises(MismatchError, match="another adapter or base"):
        ledger.begin(LAYOUT, "{}", "cd")
