"""The application at a site. ``LIBRARY`` is the version of fedcompress that it needs."""

LIBRARY = "0.1.0"
