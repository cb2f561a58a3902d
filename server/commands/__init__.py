"""Each file here does the work of one command of the coordinator, such as ``fedcompress run`` or ``status``."""
