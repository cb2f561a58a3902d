"""The downlink: which envelopes bring a site from what it holds to the newest version."""

from __future__ import annotations

from fedcompress.pipeline import encode_snapshot
from fedcompress.types import Layout
from server.ledger import Ledger, Published


class Downlinks:
    """Bundles for one published version; each is built once and shared by the sites."""

    def __init__(self, ledger: Ledger, layout: Layout, published: Published, *, is_cut: bool = False) -> None:
        self._ledger = ledger
        self._layout = layout
        self._published = published
        self._is_cut = is_cut
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
            chain = b"".join(self._ledger.envelopes(start))
            exact = 4 * self._layout.numel
            if len(chain) > exact:
                chain = min(chain, self._whole(), key=len)
            self._cache[start] = chain
        return self._cache[start]

    def _whole(self) -> bytes:
        if not self._snapshot:
            self._snapshot = encode_snapshot(
                self._published.state,
                self._layout,
                run=self._ledger.run,
                version=self._published.version,
                is_cut=self._is_cut,
            )
        return self._snapshot
