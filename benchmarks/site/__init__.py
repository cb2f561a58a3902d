"""What a round costs a site beyond training, in seconds and memory, and how fast ranks train."""
