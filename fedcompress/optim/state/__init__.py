"""What optimizer rules keep between steps is handled here: moments, bases, selections, error feedback."""
