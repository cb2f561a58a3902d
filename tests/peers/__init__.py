"""What other projects promise of merging, on values of our own; their functions are the oracles where installed."""
