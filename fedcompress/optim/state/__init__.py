"""The modules handle what optimizer rules keep between steps: moments, bases, selections, error feedback."""
