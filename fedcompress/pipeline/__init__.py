"""Where codecs meet the wire: updates and published states become envelopes, and come back.

``coding`` encodes and decodes slices of a layout, ``updates`` makes envelopes of updates,
``states`` of published states.
"""

from fedcompress.pipeline.states import decode_state, encode_delta, encode_snapshot
from fedcompress.pipeline.updates import decode_update, encode_update

__all__ = ["decode_state", "decode_update", "encode_delta", "encode_snapshot", "encode_update"]
