"""The application that runs at the coordinator. ``LIBRARY`` is the version of fedcompress that it needs."""

LIBRARY = "0.1.0"
