"""The application that runs at a site: ``app`` is what Flower starts, ``worker`` and ``training`` do the work."""

LIBRARY = "0.1.0"  # the version of fedcompress that it needs
