"""Signatures in the frame of an envelope."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcompress import errors
from fedcompress.identity import PrivateKey
from fedcompress.wire import (
    Limits,
    check_frame,
    digest_of,
    pack,
    seal_of,
    sign_envelope,
    size_of,
    split_bundle,
    unpack,
)
from tests.support import lora_layout, normal, update_header

LAYOUT = lora_layout(modules=1)
HEADER = update_header(LAYOUT, normal(LAYOUT, 0))
PLAIN = pack(HEADER, (b"abc", b"", b"12345"))
KEY, OTHER = PrivateKey.new("one"), PrivateKey.new("two")
SIGNED = sign_envelope(PLAIN, KEY.sign)
LIMITS = Limits(max_body=8)


def test_a_signature_changes_the_flags_the_digest_and_nothing_else() -> None:
    assert len(SIGNED) == len(PLAIN) + 64
    assert (SIGNED[:6], SIGNED[6:8], SIGNED[8:-96]) == (PLAIN[:6], b"\x01\0", PLAIN[8:-32])
    assert SIGNED[-96:-64] == hashlib.sha256(SIGNED[:-96]).digest() == digest_of(SIGNED) != digest_of(PLAIN)
    one, two = unpack(PLAIN, LIMITS), unpack(SIGNED, LIMITS)
    assert (one.header, one.sections, one.signature) == (two.header, two.sections, b"")
    assert two.signature == SIGNED[-64:] == KEY.sign(b"fedcompress-envelope-v1\0" + digest_of(SIGNED))
    assert size_of(SIGNED[:20], LIMITS) == len(SIGNED)


def test_signed_again_is_the_same_and_by_another_keeps_the_digest() -> None:
    assert sign_envelope(SIGNED, KEY.sign) == SIGNED
    again = sign_envelope(SIGNED, OTHER.sign)
    assert again[:-64] == SIGNED[:-64]
    assert digest_of(again) == digest_of(SIGNED)
    assert again[-64:] != SIGNED[-64:]


def test_signed_and_unsigned_in_one_bundle() -> None:
    pieces = [PLAIN, SIGNED, SIGNED, PLAIN]
    assert split_bundle(b"".join(pieces), LIMITS) == pieces


def test_truncated_at_every_length() -> None:
    for size in range(len(SIGNED)):
        with pytest.raises(errors.TruncatedError):
            seal_of(SIGNED[:size], LIMITS)
    with pytest.raises(errors.TrailingBytesError):
        seal_of(SIGNED + b"\0", LIMITS)


def test_flags_of_other_versions() -> None:
    for flags in (2, 3, 0x100, 0xFFFF):
        with pytest.raises(errors.VersionError, match="flags"):
            seal_of(PLAIN[:6] + flags.to_bytes(2, "little") + PLAIN[8:], LIMITS)
    old = bytearray(SIGNED)
    old[4] = 1
    with pytest.raises(errors.VersionError, match="flags"):
        seal_of(bytes(old), LIMITS)


@given(st.integers(0, len(SIGNED) - 1), st.integers(0, 7))
def test_no_changed_bit_is_signed(at: int, bit: int) -> None:
    """Whatever bit is changed: it does not parse, or the signature is wrong."""
    changed = bytearray(SIGNED)
    changed[at] ^= 1 << bit
    for data in (bytes(changed), bytes(changed[:-96]) + hashlib.sha256(changed[:-96]).digest() + bytes(changed[-64:])):
        if data == SIGNED:  # the bit was in the digest, which is right again
            continue
        try:
            seal = seal_of(data, LIMITS)
        except errors.WireError:
            continue
        assert not seal.signature or not KEY.public.verifies(seal.signature, seal.statement)


def test_bytes_that_were_checked_are_not_hashed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checked frame gives what the bytes give, and is still held to the limits of who reads it."""
    for data in (PLAIN, SIGNED):
        checked = check_frame(data, LIMITS)
        expected = unpack(data, LIMITS)
        resigned = sign_envelope(data, OTHER.sign)
        with monkeypatch.context() as patch:
            patch.setattr("fedcompress.wire.frame.hashlib.sha256", None)
            assert check_frame(checked, LIMITS) is checked
            assert unpack(checked, LIMITS) == expected
            assert seal_of(checked, LIMITS).digest == expected.digest == digest_of(data)
            with pytest.raises(errors.LimitError, match="body_size"):
                unpack(checked, Limits(max_body=7))
        assert sign_envelope(checked, OTHER.sign) == resigned
