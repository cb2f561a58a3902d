"""Privacy measures bound what one site can contribute. Noise and accounting are not built yet."""

from fedcompress.privacy.clipping import clip_factor, clip_update

__all__ = ["clip_factor", "clip_update"]
