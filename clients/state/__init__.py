"""What a site must not lose between rounds."""
