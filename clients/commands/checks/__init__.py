"""What ``fedcompress site doctor`` looks at. A check never raises: what is wrong is its result."""
