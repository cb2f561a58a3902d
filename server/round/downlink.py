"""The downlink to a site consists of the envelopes that bring it from what it holds to the newest version."""

from __future__ import annotations

from collections.abc import Callable

from fedcompress.errors import AccessError, StateError
from fedcompress.identity import PrivateKey
from fedcompress.pipeline.states import encode_snapshot
from fedcompress.types import Layout, state_digest
from fedcompress.wire import sign_envelope
from server.ledger.ledger import Ledger
from server.ledger.versions import PublishedState

MAX_CACHED = 2  # bundles that are kept, each at most as large as the adapter
MAX_CHAIN_BYTES_PER_ENTRY = 4  # a longer chain of deltas than this is longer than the snapshot, which is float32


class DownlinkBuilder:
    """Builds the downlinks to one published version; sites that hold the same version share a bundle.

    Envelopes are signed here and not where they are kept: whoever changes the coordinator's key changes the signature
    of all that is sent from then on.

    Args:
        ledger: has the envelopes of all versions.
        layout: of the adapter.
        published: the newest version.
        key: the coordinator's; None signs nothing.
        report: takes a text for people when something damaged was found and repaired.
    """

    def __init__(
        self,
        ledger: Ledger,
        layout: Layout,
        published: PublishedState,
        key: PrivateKey | None = None,
        report: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._ledger = ledger
        self._layout = layout
        self._published = published
        self._key = key
        self._report = report
        self._cache: dict[int | None, bytes] = {}

    def build(self, acked: int | None) -> bytes:
        """Build the downlink of a site that holds version ``acked``, or nothing.

        It is the shorter of the compressed deltas since that version and an exact snapshot. A site that already holds
        the newest version gets the last delta again: it is small, and it carries the digest that the site checks itself
        against. Where a delta is damaged, the snapshot takes its place.
        """
        newest = self._published.version
        start = acked if acked is None or acked < newest else max(newest - 1, 0)
        if start == newest:  # version 0 is a snapshot by itself
            start = None
        if self._ledger.chain_size(start) > MAX_CHAIN_BYTES_PER_ENTRY * self._layout.numel:
            start = newest
        if start not in self._cache:
            bundle = self._build_snapshot() if start == newest else self._build_chain(start)
            while len(self._cache) >= MAX_CACHED:  # sites that come back from far apart must not take a bundle each
                del self._cache[next(iter(self._cache))]
            self._cache[start] = bundle
        return self._cache[start]

    def _build_chain(self, start: int | None) -> bytes:
        """Join the envelopes since version ``start``; None: from the beginning."""
        try:
            return b"".join(self.sign(envelope) for envelope in self._ledger.envelopes(start))
        except (StateError, AccessError) as error:
            self._report(f"{error}: sites that need it are sent a snapshot")
            return self._build_snapshot()

    def _build_snapshot(self) -> bytes:
        published = self._published
        if state_digest(self._layout, published.state) != published.digest:
            raise StateError(f"version {published.version}: its state is no longer what was published")
        snapshot = encode_snapshot(published.state, self._layout, run=self._ledger.run, version=published.version)
        return self.sign(snapshot)

    def sign(self, envelope: bytes) -> bytes:
        """Return the envelope with the coordinator's signature, or as it is if there is no key."""
        return sign_envelope(envelope, self._key.sign) if self._key is not None else envelope
