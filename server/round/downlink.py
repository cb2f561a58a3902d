"""The downlink: which envelopes bring a site from what it holds to the newest version."""

from __future__ import annotations

from collections.abc import Callable

from fedcompress.errors import AccessError, StateError
from fedcompress.identity import PrivateKey
from fedcompress.pipeline.states import encode_snapshot
from fedcompress.types import Layout, state_digest
from fedcompress.wire import sign_envelope
from server.ledger.ledger import Ledger, PublishedState

MAX_CACHED = 2  # bundles, each at most as large as the adapter


class DownlinkBuilder:
    """Bundles for one published version; those that were sent last are shared by the sites.

    Envelopes are signed here and not where they are kept: whoever changes the coordinator's key
    changes the signature of all that is sent from then on.
    """

    def __init__(
        self,
        ledger: Ledger,
        layout: Layout,
        published: PublishedState,
        key: PrivateKey | None = None,
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._key = key
        self._say = say  # is told what was repaired
        self._ledger = ledger
        self._layout = layout
        self._published = published
        self._cache: dict[int | None, bytes] = {}

    def build(self, acked: int | None) -> bytes:
        """The shorter of the compressed deltas since ``acked`` and an exact snapshot.

        A site that already holds the newest version gets the last delta again: it is small,
        and it carries the digest that the site checks itself against. Where a delta is damaged,
        the snapshot takes its place.
        """
        newest = self._published.version
        start = acked if acked is None or acked < newest else max(newest - 1, 0)
        if start == newest:  # version 0 is a snapshot by itself
            start = None
        if self._ledger.chain_size(start) > 4 * self._layout.numel:
            start = newest
        if start not in self._cache:
            bundle = self._whole() if start == newest else self._chain(start)
            while len(self._cache) >= MAX_CACHED:  # sites that come back from far apart must not take a bundle each
                del self._cache[next(iter(self._cache))]
            self._cache[start] = bundle
        return self._cache[start]

    def _chain(self, start: int | None) -> bytes:
        try:
            return b"".join(self.signed(envelope) for envelope in self._ledger.envelopes(start))
        except (StateError, AccessError) as error:
            self._say(f"{error}: sites that need it are sent a snapshot")
            return self._whole()

    def _whole(self) -> bytes:
        published, run = self._published, self._ledger.run
        if state_digest(self._layout, published.state) != published.digest:
            raise StateError(f"version {published.version}: its state is no longer what was published")
        whole = encode_snapshot(published.state, self._layout, run=run, version=published.version)
        return self.signed(whole)

    def signed(self, envelope: bytes) -> bytes:
        """With the coordinator's signature, if it has a key."""
        return sign_envelope(envelope, self._key.sign) if self._key is not None else envelope
