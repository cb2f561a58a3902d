"""The downlink: which envelopes bring a site from what it holds to the newest version."""

from __future__ import annotations

from fedcompress.identity import PrivateKey
from fedcompress.pipeline import encode_snapshot
from fedcompress.types import Layout
from fedcompress.wire import sign_envelope
from server.ledger import Ledger, Published


class Downlinks:
    """Bundles for one published version; each is built once and shared by the sites.

    Envelopes are signed here and not where they are kept: whoever changes the coordinator's key
    changes the signature of all that is sent from then on.
    """

    def __init__(
        self,
        ledger: Ledger,
        layout: Layout,
        published: Published,
        key: PrivateKey | None = None,
    ) -> None:
        self._key = key
        self._ledger = ledger
        self._layout = layout
        self._published = published
        self._cache: dict[int | None, bytes] = {}
        self._snapshot = b""

    def bundle(self, acked: int | None) -> bytes:
        """The shorter of the compressed deltas since ``acked`` and an exact snapshot.

        A site that already holds the newest version gets the last delta again: it is small,
        and it carries the digest that the site checks itself against.
        """
        newest = self._published.version
        start = acked if acked is None or acked < newest else max(newest - 1, 0)
        if start == newest:  # version 0 is a snapshot by itself
            start = None
        if start not in self._cache:
            chain = b"".join(self.signed(envelope) for envelope in self._ledger.envelopes(start))
            exact = 4 * self._layout.numel
            if len(chain) > exact:
                chain = min(chain, self._whole(), key=len)
            self._cache[start] = chain
        return self._cache[start]

    def _whole(self) -> bytes:
        if not self._snapshot:
            published, run = self._published, self._ledger.run
            whole = encode_snapshot(published.state, self._layout, run=run, version=published.version)
            self._snapshot = self.signed(whole)
        return self._snapshot

    def signed(self, envelope: bytes) -> bytes:
        """With the coordinator's signature, if it has a key."""
        return sign_envelope(envelope, self._key.sign) if self._key is not None else envelope
