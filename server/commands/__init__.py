"""What ``fedcompress run``, ``status``, ``stop``, ``history`` and ``export`` do: one file per command."""
