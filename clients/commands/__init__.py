"""Each command of ``fedcompress site`` is one file here: its options, and ``run``."""
